"""Mean and deviation of a data set's channels, and a window for values of more than 8 bits."""

from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from ..utils.errors import BadImageError
from ..utils.progress import reported
from .image_io import as_bytes, read_raw, with_channels

SAMPLE = 4096  # values per image that go into the percentiles
ENDS = (0.1, 99.9)  # percentiles of all values that become black and white


@dataclass(frozen=True)
class Statistics:
    """Of the pixels of some images.

    Attributes:
        images: How many were read.
        bad: How many could not be.
        mean: Per channel, in 0..255.
        std: Per channel, in 0..255; 255 where all values are equal.
        window: Values that were taken as black and white; None: 8 bits, as they are, or see ``percentiles``.
        percentiles: Of each image, that were taken so.
    """

    images: int
    bad: int
    mean: List[float]
    std: List[float]
    window: Optional[Sequence[float]]
    percentiles: Optional[Sequence[float]]


def statistics(
    paths: Sequence[str],
    channels: int = 3,
    window: Optional[Sequence[float]] = None,
    percentiles: Optional[Sequence[float]] = None,
    ends: Tuple[float, float] = ENDS,
) -> Statistics:
    """Return mean and deviation per channel of images as training will see them, each image weighing the same.

    Args:
        paths: Of the images.
        channels, window, percentiles: See ``read_image``. If an image has more than 8 bits and neither a window nor
            percentiles are given, one window for all is found first, and used: the range between ``ends``; where others
            have 8 bits, which would become black, the percentiles ``ends`` of each image are used.
        ends: Percentiles, over all images or of each, that become black and white.

    Raises:
        BadImageError: no image can be read.
    """
    if window is None and percentiles is None:
        window, percentiles = _range(paths, channels, ends)
    reading: Dict[str, Any] = dict(window=window, percentiles=percentiles)
    first, second, count, bad, fault = np.zeros(channels), np.zeros(channels), 0, 0, None
    for path in reported(paths, len(paths)):
        try:
            raw = read_raw(path, channels)
            if raw.dtype != np.uint8 or window is not None or percentiles is not None:
                raw = as_bytes(raw, path, **reading)
            pixels = with_channels(raw, path, channels).reshape(-1, channels).astype(np.float64)
        except BadImageError as error:
            bad, fault = bad + 1, error
            continue
        first += pixels.mean(0)
        second += (pixels**2).mean(0)
        count += 1
    if not count:
        raise BadImageError(f'none of {len(paths)} images can be read; the last one: {fault}')
    mean = first / count
    std = np.sqrt(np.maximum(second / count - mean**2, 0))
    std[std < 1e-6] = 255.0  # a channel of one value, such as an empty band: divided by 0 it would be NaN
    return Statistics(count, bad, mean.tolist(), std.tolist(), window, percentiles)


def _range(
    paths: Sequence[str], channels: int, ends: Tuple[float, float]
) -> Tuple[Optional[Tuple[float, float]], Optional[Tuple[float, float]]]:
    """One window for all images, or percentiles of each if some have 8 bits; neither if all have."""
    rng, values, deep = np.random.default_rng(0), [], set()
    for path in reported(paths, len(paths), what='images, their range'):
        try:
            raw = read_raw(path, channels)
        except BadImageError:
            continue
        deep.add(raw.dtype != np.uint8)
        sample = raw.reshape(-1)[rng.integers(raw.size, size=SAMPLE)].astype(np.float64)
        values.append(sample[np.isfinite(sample)])
    if True not in deep:
        return None, None
    if False in deep:
        return None, ends
    low, high = np.percentile(np.concatenate(values), ends)
    return (float(low), float(max(high, low + 1e-6 * max(abs(low), 1)))), None
