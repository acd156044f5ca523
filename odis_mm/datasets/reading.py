"""How the images of a folder are to be read: channels, and the values that are black and white."""

from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence

import numpy as np

from ..utils.errors import BadImageError
from ..utils.files import PathLike
from .image_io import image_kind, read_raw
from .statistics import statistics
from .survey import spread

LOOKED_AT = 20  # images, for their kind
MEASURED = 200  # images, for a window, means and deviations


@dataclass(frozen=True)
class Reading:
    """What ``LoadObjectImage`` and ``LoadDetectionImage`` are to be told, and the preprocessor of the model.

    Attributes:
        channels: Of the images; 3 for grey ones, too, which are repeated.
        window: Values that become 0 and 255; None: the images have 8 bits.
        percentiles: In place of a window: that of each file.
        mean, std: Per channel, in 0..255; None: those of the config.
        told: What the images are, in words; '' for usual photographs.
    """

    channels: int = 3
    window: Optional[Sequence[float]] = None
    percentiles: Optional[Sequence[float]] = None
    mean: Optional[List[float]] = None
    std: Optional[List[float]] = None
    told: str = ''

    @property
    def options(self) -> Dict[str, Any]:
        """Of the loading step, without those that are its defaults."""
        found: Dict[str, Any] = {} if self.channels == 3 else dict(channels=self.channels)
        for name in ('window', 'percentiles'):
            if getattr(self, name) is not None:
                found[name] = [float(value) for value in getattr(self, name)]
        return found


def find_reading(paths: Sequence[PathLike]) -> Reading:
    """Return how images are read, from a sample of them; unreadable ones count for nothing.

    One window for the whole data set is taken for values of more than 8 bits, from the 0.1 to the 99.9 percentile.
    Where images of 8 bits are among them, each image has a window of its own: a common one would make those black.
    """
    kinds = []
    for i in spread(len(paths), LOOKED_AT).tolist():
        try:
            kinds.append(read_raw(paths[i]))
        except BadImageError:
            continue
    if not kinds:
        return Reading()
    found = max(raw.shape[2] for raw in kinds)
    channels = 3 if found <= 3 else found
    if channels == 3 and all(raw.dtype == np.uint8 for raw in kinds):
        return Reading()
    chosen = [str(paths[i]) for i in spread(len(paths), MEASURED).tolist()]
    measured = statistics(chosen, channels)
    told = f'images: {image_kind(next(raw for raw in kinds if raw.shape[2] == found))}'
    if measured.percentiles is not None:
        eight = sum(raw.dtype == np.uint8 for raw in kinds)
        told += (
            f'; {eight} of {len(kinds)} that were looked at have 8 bits, the others more: the range of each image '
            'becomes 0 to 255. For one range, convert them to one kind'
        )
    if measured.window is not None:
        told += '; values of {:g} to {:g} become 0 to 255'.format(*measured.window)
    if channels == 3:
        return Reading(window=measured.window, percentiles=measured.percentiles, told=told)
    told += f'; mean and deviation of {measured.images} images'
    return Reading(channels, measured.window, measured.percentiles, measured.mean, measured.std, told)
