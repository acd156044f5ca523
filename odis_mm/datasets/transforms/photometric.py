"""Colours of rendered views: numbers are drawn for all views at once, then each view is changed by uint8 kernels.

Brightness, contrast, saturation, grey and blur follow PIL, which torchvision's jitter and the releases of DINO and iBOT
use."""

from typing import Sequence

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmpretrain.registry import TRANSFORMS

from ...utils.errors import ConfigError

_LEVELS = np.arange(256, dtype=np.float32)
_NEGATIVE = np.where(_LEVELS < 128, _LEVELS, 255 - _LEVELS).astype(np.uint8)  # solarize, threshold 128
# of packed numbers
COLUMNS = dict(jitter=0, gray=1, blur=2, solarize=3, factors=slice(4, 8), order=slice(8, 12), sigma=12)
WIDTH = 13  # of packed numbers
_DOWN = 0.4999  # OpenCV rounds to the nearest, PIL's blend cuts off what is behind the point


def brightness(img: np.ndarray, factor: float) -> np.ndarray:
    """Return the values of a picture uint8 [h, w, C] times ``factor``, which is not negative."""
    return cv2.convertScaleAbs(img, alpha=factor, beta=-_DOWN)


def contrast(img: np.ndarray, factor: float) -> np.ndarray:
    """Scale the distances from the mean grey of the picture, a whole number, by ``factor``."""
    grey = int((cv2.mean(cv2.cvtColor(img, cv2.COLOR_RGB2GRAY))[0] if img.shape[2] == 3 else img.mean()) + 0.5)
    offset = (1 - factor) * grey - _DOWN
    if factor <= 1:  # nothing below 0, of which it would take the absolute value
        return cv2.convertScaleAbs(img, alpha=factor, beta=offset)
    return cv2.addWeighted(img, factor, img, 0, offset)


def grayscale(img: np.ndarray) -> np.ndarray:
    """Return each pixel's luminance three times, uint8 [h, w, 3] of RGB."""
    return cv2.cvtColor(cv2.cvtColor(img, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def saturation(img: np.ndarray, factor: float) -> np.ndarray:
    """Scale the distances from each pixel's own grey, a whole number, by ``factor``."""
    return cv2.addWeighted(img, factor, grayscale(img), 1 - factor, -_DOWN)


def hue(img: np.ndarray, shift: float) -> np.ndarray:
    """Return the picture with its hues turned by ``shift`` of a full circle, in HSV with 256 hues."""
    hsv = cv2.cvtColor(img, cv2.COLOR_RGB2HSV_FULL)
    # OpenCV writes full-range hues in 1/256 of the circle and reads them in 1/255
    table = np.rint((_LEVELS / 256 + shift) % 1 * 255).astype(np.uint8)
    cv2.insertChannel(cv2.LUT(cv2.extractChannel(hsv, 0), table), hsv, 0)
    # by Intel's IPP where OpenCV has it; its own code (cv2.ipp.setUseIPP(False)) is faster but cuts off instead of
    # rounding, which darkens a picture by a third of a grey level
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def blur_kernel(sigma: float) -> np.ndarray:
    """Return the weights, float64 and odd in number, of three box filters of fractional width in a row, whose variance
    is sigma^2.

    This is what PIL's GaussianBlur applies (Gwosdek et al., SSVM 2011, extended box filters). A sampled Gaussian blurs
    less below sigma 0.5, where nearly all of its weight falls on the middle. Ends below a quarter of a grey level are
    cut off.
    """
    variance = sigma**2 / 3
    whole = int((np.sqrt(12 * variance + 1) - 1) / 2)
    ends = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    box = np.ones(2 * whole + 3)
    box[[0, -1]] = ends
    kernel = np.convolve(np.convolve(box, box), box)
    # to the last bit alike on both sides: OpenCV has kernels for that
    kernel = (kernel + kernel[::-1]) / (2 * kernel.sum())
    cut = int((kernel < 1e-3).sum()) // 2
    kernel = kernel[cut : len(kernel) - cut]
    return kernel / kernel.sum()


def blur(img: np.ndarray, sigma: float) -> np.ndarray:
    """Blur by a Gaussian, sigma in pixels of the view, edges replicated; PIL's but for its rounding between the
    passes."""
    kernel = blur_kernel(sigma).astype(np.float32)
    return cv2.sepFilter2D(img, -1, kernel, kernel, borderType=cv2.BORDER_REPLICATE)


_JITTER = (brightness, contrast, saturation, hue)


@TRANSFORMS.register_module()
class PhotometricViews(BaseTransform):
    """Colour jitter, greyscale, blur, solarize; new numbers for every image and view (DINO and iBOT's augmentation).

    The four jitters are applied in an order of their own for each view, each with a factor from U(1 - a, 1 + a) (hue: a
    shift from U(-a, a) of the circle), as in torchvision.

    Images of other than three channels have no colours: of the steps, brightness, contrast, blur and solarize are
    applied to them.

    Args:
        brightness, contrast, saturation, hue: Strengths a.
        jitter_prob: Of the four together.
        gray_prob: Of greyscale.
        blur_prob: For the first global view, every other global view, local views.
        blur_sigma: Range of the blur's sigma in pixels.
        solarize_prob: For the same three kinds of views.
        on_device: Only draw the numbers; ``ViewPreprocessor`` applies them where the model is, to the whole batch.

    Reads ``pixels``, ``view_roles``, ``rng``; replaces ``pixels``, or adds ``photometric`` float32 [V, WIDTH]
    (:meth:`pack`).

    Raises:
        ConfigError: not three probabilities, or a hue above 0.5.
    """

    def __init__(
        self,
        brightness: float = 0.4,
        contrast: float = 0.4,
        saturation: float = 0.2,
        hue: float = 0.1,
        jitter_prob: float = 0.8,
        gray_prob: float = 0.2,
        blur_prob: Sequence[float] = (1.0, 0.1, 0.5),
        blur_sigma: Sequence[float] = (0.1, 2.0),
        solarize_prob: Sequence[float] = (0.0, 0.2, 0.0),
        on_device: bool = False,
    ):
        for name, probs in (('blur_prob', blur_prob), ('solarize_prob', solarize_prob)):
            if len(probs) != 3:
                raise ConfigError(f'{name}={probs} must hold three numbers: first global view, other globals, locals')
        if not 0 <= hue <= 0.5:
            raise ConfigError(f'hue={hue} is a share of the colour circle: choose it from 0 to 0.5')
        spread = np.array([brightness, contrast, saturation, hue], np.float64)
        self.low = np.maximum(np.array([1, 1, 1, 0]) - spread, [0, 0, 0, -0.5])
        self.high = np.array([1, 1, 1, 0]) + spread
        self.active = spread > 0
        self.jitter_prob, self.gray_prob = jitter_prob, gray_prob
        self.blur_prob, self.solarize_prob = np.asarray(blur_prob), np.asarray(solarize_prob)
        self.blur_sigma = blur_sigma
        self.on_device = on_device

    def draw(self, rng: np.random.Generator, roles: Sequence[str]) -> dict:
        """Draw numbers for V views: jitter, gray, blur, solarize bool [V], factors [V, 4], order int [V, 4], sigma
        [V]."""
        kind = [2 if role == 'local' else min(i, 1) for i, role in enumerate(roles)]
        u = rng.random((len(roles), 13))
        low, high = self.blur_sigma
        return dict(
            jitter=u[:, 0] < self.jitter_prob,
            gray=u[:, 1] < self.gray_prob,
            blur=u[:, 2] < self.blur_prob[kind],
            solarize=u[:, 3] < self.solarize_prob[kind],
            factors=self.low + (self.high - self.low) * u[:, 4:8],
            order=u[:, 8:12].argsort(1),
            sigma=low + (high - low) * u[:, 12],
        )

    @staticmethod
    def pack(drawn: dict) -> np.ndarray:
        """Return what :meth:`draw` returned as float32 [V, WIDTH], in COLUMNS; flags are 0 or 1."""
        packed = np.empty((len(drawn['sigma']), WIDTH), np.float32)
        for name, column in COLUMNS.items():
            packed[:, column] = drawn[name]
        return packed

    def transform(self, results: dict) -> dict:
        numbers = self.draw(results['rng'], results['view_roles'])
        if self.on_device:
            results['photometric'] = self.pack(numbers)
            return results
        drawn = {name: values.tolist() for name, values in numbers.items()}
        results['pixels'] = [
            self._changed(img, {name: values[i] for name, values in drawn.items()})
            for i, img in enumerate(results['pixels'])
        ]
        return results

    def _changed(self, img: np.ndarray, drawn: dict) -> np.ndarray:
        """One view with its numbers. What is about colours, hue, saturation and grey, is left out where there are
        none."""
        shape, coloured = img.shape, img.shape[2] == 3
        if drawn['jitter']:
            for j in drawn['order']:
                if self.active[j] and (coloured or j < 2):
                    img = _JITTER[j](img.reshape(shape), drawn['factors'][j])
        if drawn['gray'] and coloured:
            img = grayscale(img)
        if drawn['blur']:
            img = blur(img, drawn['sigma'])
        if drawn['solarize']:
            img = cv2.LUT(img, _NEGATIVE)
        return img.reshape(shape)  # OpenCV drops a single channel's axis
