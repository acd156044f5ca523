"""Reading images: one decode each, and a clear refusal instead of half an image."""

import warnings
from pathlib import Path
from typing import Any, Optional, Sequence, Tuple, Union

import cv2
import numpy as np
from mmcv.transforms import BaseTransform, LoadImageFromFile
from mmpretrain.registry import TRANSFORMS
from PIL import Image

from ..utils.errors import BadImageError, ConfigError, MissingImageError, UnreadableImageError
from ..utils.files import PathLike
from .decoding import ORIENTATION, by_opencv, decode_jpeg, decode_png, decode_tiff, jpeg_head, other_kind, size_fault
from .files import shown

__all__ = ['LoadObjectImage', 'clip_boxes', 'has_extent', 'image_kind', 'read_image', 'read_raw']

_BITS = (8, 10, 12, 14, 16)  # of cameras and scanners
Range = Optional[Sequence[float]]


class UnsuitedImageError(BadImageError):
    """An image of another kind than the config says: another number of channels, or values for which it names no
    window."""


class PostponedJPEG:
    """A JPEG that is decoded when its views are known: as few of its pixels as they need.

    Attributes:
        shape: (H, W, 3) of the whole image.
    """

    def __init__(self, path: PathLike, data: bytes, size: Tuple[int, int]):
        self.path, self.data, self.shape = path, data, (*size, 3)

    def decode(self, factor: int = 1) -> np.ndarray:
        """Return RGB at 1 / factor (1, 2, 4 or 8) of its size, uint8 [ceil(H / factor), ceil(W / factor), 3].

        libjpeg leaves out the frequencies that the smaller image has no place for: each of its pixels is made of
        ``factor`` x ``factor`` of the whole one.

        Raises:
            BadImageError: it cannot be decoded.
        """
        image = decode_jpeg(self.data, factor)
        if image is None or image.shape != (*(-(-side // factor) for side in self.shape[:2]), 3):
            raise _undecodable(self.path, self.data)
        return image


def _undecodable(path: PathLike, data: bytes) -> BadImageError:
    kind, remedy = other_kind(data)
    return BadImageError(f'image {shown(path)} cannot be decoded: it is {kind}; {remedy} or remove it from the data.')


def read_raw(path: PathLike, channels: int = 3) -> np.ndarray:
    """Return an image file's values as they are stored, [H, W, C] of any type; see :func:`read_image`."""
    data, _ = _read(path)
    if data[:4] in (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+'):
        image = decode_tiff(path, data, channels)
    elif data[:8] == b'\x89PNG\r\n\x1a\n' and (data[24:25] == b'\x10' or channels == 4):
        image = decode_png(data, channels)
    elif data[:4] == b'RIFF' and channels == 4:
        image = decode_png(data, channels)
    else:
        image = by_opencv(data)
    if image is None or not image.size:
        raise _undecodable(path, data)
    return image if image.ndim == 3 else image[..., None]


def _read(path: PathLike) -> Tuple[bytes, Optional[Tuple[int, int]]]:
    """A file's bytes, checked as far as no pixel is needed; of a JPEG also (height, width)."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise MissingImageError(
            f'image {shown(path)} does not exist; check data_root and data_prefix, or remove it from '
            'the annotations or the list.'
        ) from None
    except OSError as error:
        raise UnreadableImageError(
            f'image {shown(path)} could not be read ({error.strerror}); check the file and its permissions.'
        ) from error
    except ValueError as error:
        raise BadImageError(
            f'image {str(path)!r} cannot have such a name ({error}); fix the annotations or the list.'
        ) from error
    if not data:
        raise BadImageError(f'image {shown(path)} is empty (0 bytes); fetch it again or remove it from the data.')
    ends, size = jpeg_head(data) if data[:2] == b'\xff\xd8' else (True, None)
    if not ends:
        raise BadImageError(
            f'image {shown(path)} is a truncated JPEG ({len(data)} bytes, no end marker); fetch it again or '
            'remove it from the data.'
        )
    fault = size_fault(data, size and size[0] * size[1])
    if fault:
        raise BadImageError(f'image {shown(path)} {fault}; fetch it again, shrink it or remove it from the data.')
    return data, size


def size_of(path: PathLike) -> Tuple[int, int]:
    """Return height and width of an image's stored pixels: from its header where Pillow knows the kind, else by reading
    it.

    Raises:
        BadImageError: as :func:`read_raw`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of large images
            with Image.open(path) as image:
                if image.format == 'TIFF':  # Pillow tells the size after a turn by its orientation
                    return image.tag_v2[257], image.tag_v2[256]
                return image.height, image.width
    except Exception:  # of many classes, for what is damaged, and for scientific images
        height, width, _ = read_raw(path).shape
        return height, width


def orientation_of(path: PathLike) -> int:
    """Return the EXIF orientation of an image, 1 if there is none: from 2 on, what tools draw on is turned or mirrored,
    from 5 on with the sides swapped."""
    try:
        with Image.open(path) as image:
            found = image.getexif().get(ORIENTATION, 1)
    except Exception:  # of many classes; whether it can be read is told elsewhere
        return 1
    return found if found in range(2, 9) else 1


def read_image(path: PathLike, channels: int = 3, window: Range = None, percentiles: Range = None) -> np.ndarray:
    """Decode an image file once, as uint8 [H, W, channels], RGB if it is a colour image.

    JPEG, PNG, BMP, WebP and TIFF are read, the last one with 1 to many channels of 8 to 32 bits, whole or floating
    (more than four channels, and what OpenCV does not know, by the package ``tifffile``). A TIFF's first image is
    taken, unless it is grey and ``channels`` is neither 1 nor 3: then its pages are the channels.

    An orientation, of EXIF or of a TIFF, is NOT applied: the pixels are those that are stored, which is what the sizes,
    boxes and masks of COCO refer to. (mmcv's `LoadImageFromFile`, and so a stock mmdet pipeline, applies it unless
    `color_type='color_ignore_orientation'`.)

    Values become 0..255 so: 8 bits stay. Whole numbers of more bits are divided by the largest number of 10, 12, 14 or
    16 bits, whichever holds the file's largest value; floating ones in 0..1 are multiplied by 255, and others up to 255
    rounded. Where that does not suit, or for any other range, say which values are black and white: for the data set by
    ``window``, for each file by ``percentiles``.

    Args:
        path: The file.
        channels: 3: greyscale is repeated, alpha dropped. 1: colours become grey. Any other number: the file has to
            have it.
        window: Values (low, high) that become 0 and 255.
        percentiles: Such as (1, 99): the window of each file, over all its channels.

    Raises:
        BadImageError: there is no such file (``MissingImageError``, a FileNotFoundError), it can't be read
            (``UnreadableImageError``, an OSError), it is empty, truncated, no image, or of more than 2^27 pixels; it
            has another number of channels, or values for which a window must be named.
        ConfigError: it needs a package that is not installed.
    """
    image = read_raw(path, channels)
    if image.dtype != np.uint8 or window is not None or percentiles is not None:
        image = as_bytes(image, path, window, percentiles)
    return image if image.shape[2] == channels else with_channels(image, path, channels)


def with_channels(image: np.ndarray, path: PathLike, channels: int) -> np.ndarray:
    """Return an image uint8 [H, W, C] with another number of channels, as far as :func:`read_image` changes it.

    Raises:
        UnsuitedImageError: it has a number of channels that is not changed.
    """
    found = image.shape[2]
    if found == 2 and channels in (1, 3):  # grey and alpha
        image, found = image[..., :1], 1
    if found == channels:
        return image
    if found == 1 and channels == 3:
        return np.repeat(image, 3, 2)
    if found == 3 and channels == 1:
        return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
    raise UnsuitedImageError(
        f'image {shown(path)} has {found} channels, not {channels}: set channels={found} of LoadObjectImage (of '
        'LoadDetectionImage in a detector; the backbone follows), or remove it from the data.'
    )


def white_of(image: np.ndarray) -> Optional[float]:
    """Return the value of a raw image [H, W, C] that becomes 255 where no window is named, black being 0; None: the
    values do not tell."""
    low, high = _ends(image)
    if low < 0 or not np.isfinite(high):
        return None
    if image.dtype.kind == 'f':
        return 1.0 if high <= 1 else 255.0 if high <= 255 else None
    return next((float(2**bits - 1) for bits in _BITS if high < 2**bits), None)


def _ends(image: np.ndarray) -> Tuple[float, float]:
    if image.dtype.kind != 'f':
        return float(image.min()), float(image.max())
    finite = image[np.isfinite(image)]
    return (float(finite.min()), float(finite.max())) if finite.size else (np.nan, np.nan)


def as_bytes(image: np.ndarray, path: PathLike, window: Range = None, percentiles: Range = None) -> np.ndarray:
    """Return raw values [H, W, C] as uint8 by the rules of :func:`read_image`.

    Raises:
        BadImageError: it holds no numbers, or (``UnsuitedImageError``) values for which a window must be named.
    """
    if image.dtype.kind not in 'uifb':
        raise BadImageError(
            f'image {shown(path)} holds values of type {image.dtype}; store it as whole or floating numbers.'
        )
    if image.dtype.kind == 'b':
        return image.astype(np.uint8) * 255
    if window is not None:
        low, high = window
    elif percentiles is not None:
        finite = image[np.isfinite(image)] if image.dtype.kind == 'f' else image
        low, high = np.percentile(finite, percentiles) if finite.size else (0.0, 0.0)
        high = max(high, low + np.finfo(np.float32).eps * max(abs(low), 1))
    else:
        low, high = 0.0, white_of(image)
        if high is None:
            ends = '{:g} to {:g}'.format(*_ends(image))
            raise UnsuitedImageError(
                f'image {shown(path)} holds {image.dtype} values from {ends}, which do not tell what is black and '
                'white: set window=(low, high) or percentiles=(1, 99) of LoadObjectImage (of LoadDetectionImage in a '
                'detector; odis-mm stats proposes a window for the whole data set).'
            )
    scaled = (
        (image.astype(np.float32) - low) * (255 / (high - low))
        if image.dtype != np.float64
        else (image - low) * (255 / (high - low))
    )
    return np.rint(np.clip(np.nan_to_num(scaled, nan=0.0), 0, 255)).astype(np.uint8)


def image_kind(image: np.ndarray) -> str:
    """Return what a raw image [H, W, C] holds, in words: '3 channels of 8 bits'."""
    channels = f'{image.shape[2]} channel{"s" * (image.shape[2] != 1)}'
    if image.dtype == np.uint8:
        return f'{channels} of 8 bits'
    if image.dtype.kind == 'f':
        return f'{channels} of floating numbers ({image.dtype})'
    white = white_of(image)
    used = '' if white is None else f', {int(white).bit_length()} of them used'
    return f'{channels} of {8 * image.dtype.itemsize} bits{used}'


def as_colours(image: np.ndarray) -> np.ndarray:
    """Return an image [H, W, C] as three channels that can be drawn: a grey one three times, of more the first ones."""
    return image if image.shape[2] == 3 else image[..., np.minimum(np.arange(3), image.shape[2] - 1)]


def clip_boxes(boxes: np.ndarray, height: Any, width: Any) -> np.ndarray:
    """Return boxes (float [n, 4], xyxy) cut at the image's border; height and width may be arrays [n]."""
    limit = np.stack(np.broadcast_arrays(width, height, width, height), -1)
    return np.minimum(np.maximum(boxes, 0), limit)


def has_extent(boxes: np.ndarray) -> np.ndarray:
    """Return which boxes (xyxy) are at least one pixel wide and high: bool [n]. Inverted ones and NaN are not."""
    return (boxes[:, 2] - boxes[:, 0] >= 1) & (boxes[:, 3] - boxes[:, 1] >= 1)


def check_size(image: np.ndarray, results: dict) -> None:
    """Refuse an image of another size than its annotation says (``height``, ``width`` of ``results``), if it does.

    Raises:
        BadImageError: the sizes differ.
    """
    size, told = image.shape[:2], (results.get('height'), results.get('width'))
    if None not in told and told != size:
        hint = ' (an EXIF orientation is not applied: store the pixels upright)' if told == size[::-1] else ''
        raise BadImageError(
            f'image {shown(results["img_path"])} is {size[1]} x {size[0]} pixels but its annotation says '
            f'{told[1]} x {told[0]}{hint}; use the images that the boxes were made on.'
        )


@TRANSFORMS.register_module()
class LoadObjectImage(BaseTransform):
    """Reads `img_path` into `img` (uint8 [H, W, channels], RGB) and fills `height` and `width`.

    Where the annotations told no image size, the boxes are clipped, and those outside dropped, here.

    Args:
        channels, window, percentiles: See :func:`read_image`. The backbone's ``in_channels`` follows ``channels``.
        reduced: Leave a JPEG to ``RenderViews``, which decodes it at 1/2, 1/4 or 1/8 of its size where each crop still
            has as many pixels as its view: less to decode of photographs of many megapixels, no gain for those of
            640 x 480. The views differ by some grey levels from those of the whole image.

    Raises:
        BadImageError: the file's size is not the one of the annotations, and what `read_image` raises.
        ConfigError: no such window.
    """

    def __init__(self, channels: int = 3, window: Range = None, percentiles: Range = None, reduced: bool = False):
        if channels < 1:
            raise ConfigError(f'channels={channels} must be 1 or more.')
        if window is not None and percentiles is not None:
            raise ConfigError('LoadObjectImage takes a window for all files or percentiles for each, not both.')
        for name, ends, most in (('window', window, np.inf), ('percentiles', percentiles, 100)):
            if ends is not None and not (len(ends) == 2 and ends[0] < ends[1] <= most):
                raise ConfigError(f'{name}={ends} of LoadObjectImage must be two numbers, the lower one first.')
        if reduced and (channels != 3 or window is not None or percentiles is not None):
            raise ConfigError('LoadObjectImage(reduced=True) reads three channels of 8 bits, without a window.')
        self.channels, self.window, self.percentiles = channels, window, percentiles
        self.reduced = reduced

    def transform(self, results: dict) -> dict:
        img = self._read(results['img_path'])
        size = img.shape[:2]
        told = results.get('height'), results.get('width')
        if None in told:
            boxes = clip_boxes(results['bboxes'], *size)
            keep = has_extent(boxes)
            if not keep.all():
                if results['masks'] is not None:
                    results['masks'] = [mask for mask, kept in zip(results['masks'], keep) if kept]
                for name in ('labels', 'scores', 'crowd'):
                    if name in results:
                        results[name] = results[name][keep]
            results['bboxes'] = boxes[keep]
        else:
            check_size(img, results)
        results['img'], results['height'], results['width'] = img, *size
        return results

    def _read(self, path: PathLike) -> Union[np.ndarray, PostponedJPEG]:
        if self.reduced:
            data, size = _read(path)
            if size is not None:
                return PostponedJPEG(path, data, size)
        return read_image(path, self.channels, self.window, self.percentiles)


class LoadNamedImage(LoadImageFromFile):
    """mmcv's ``LoadImageFromFile``, whose error says which file it is and what is wrong with it. In our runs it takes
    the place of that one (:class:`~odis_mm.engine.log.QuietRunner`).

    Raises:
        BadImageError: the file cannot be read.
    """

    def transform(self, results: dict) -> Optional[dict]:
        try:
            return super().transform(results)
        except Exception as error:  # of many classes; not all of them name the file
            path = results['img_path']
            if self.backend_args is None and self.file_client_args is None:  # a file of this machine
                read_raw(path)
            raise BadImageError(
                f'image {shown(path)} cannot be read by LoadImageFromFile ({type(error).__name__}: {error}); fetch it '
                'again or remove it from the data.'
            ) from error
