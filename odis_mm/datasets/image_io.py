"""Reading images: one decode each, and a clear refusal instead of half an image."""

import io
import warnings
from pathlib import Path
from typing import Optional

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmpretrain.registry import TRANSFORMS
from PIL import Image

from ..utils.errors import BadImageError, MissingImageError, UnreadableImageError

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff')


MAX_PIXELS = 1 << 27  # 400 MB as RGB; a damaged header can claim 65535 x 65535


def _jpeg_ends(data: bytes) -> bool:
    """Whether a JPEG has its end marker. libjpeg paints what is missing grey, and OpenCV 4 passes that on."""
    at = 2
    while data[at : at + 1] == b'\xff' and at + 4 <= len(data):  # skip the head: a preview in it has its own end marker
        if data[at + 1] == 0xFF:  # fill byte
            at += 1
        elif data[at + 1] == 0xDA:
            return data.rfind(b'\xff\xd9') > at
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], 'big')
    return False


def _header_fault(data: bytes) -> Optional[str]:
    """What is wrong with the size in the header, by which OpenCV would take memory before it looks further; None: nothing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data))
            pixels, sort = image.size[0] * image.size[1], image.format
    except Image.DecompressionBombError:
        pixels, sort = MAX_PIXELS + 1, None
    except Exception:  # not a header that Pillow knows, or a damaged one: OpenCV decides, up to its own limit
        return None
    if pixels > MAX_PIXELS:
        return f'has more than {MAX_PIXELS} pixels by its header'
    if sort == 'JPEG' and pixels > 1024 * len(data):  # a blank one takes three times as many bytes
        return f'claims {pixels} pixels in {len(data)} bytes: its header is damaged, or the rest of it is missing'
    return None


def read_image(path) -> np.ndarray:
    """Decodes an image file once, as RGB uint8 [H, W, 3].

    Greyscale is repeated over the channels, alpha dropped, 16 bits reduced to 8. An EXIF orientation is NOT applied:
    the pixels are those that are stored, which is what the sizes, boxes and masks of COCO refer to. (mmcv's
    `LoadImageFromFile`, and so a stock mmdet pipeline, applies it unless `color_type='color_ignore_orientation'`.)

    Raises:
        BadImageError: there is no such file (``MissingImageError``, a FileNotFoundError), it can't be read (``UnreadableImageError``, an
            OSError), it is empty, truncated, no image, or larger than `MAX_PIXELS`.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise MissingImageError(
            f'image {path} does not exist; check data_root and data_prefix, or remove it from '
            'the annotations or the list.'
        ) from None
    except OSError as error:
        raise UnreadableImageError(
            f'image {path} could not be read ({error.strerror}); check the file and its permissions.'
        ) from error
    except ValueError as error:
        raise BadImageError(
            f'image {str(path)!r} can have no such name ({error}); mend the annotations or the list.'
        ) from error
    if not data:
        raise BadImageError(f'image {path} is empty (0 bytes); fetch it again or remove it from the data.')
    if data[:2] == b'\xff\xd8' and not _jpeg_ends(data):
        raise BadImageError(
            f'image {path} is a truncated JPEG ({len(data)} bytes, no end marker); fetch it again or '
            'remove it from the data.'
        )
    fault = _header_fault(data)
    if fault:
        raise BadImageError(f'image {path} {fault}; fetch it again, shrink it or remove it from the data.')
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        image = None
    if image is None:
        raise BadImageError(
            f'image {path} can not be decoded: it is damaged or no image; fetch it again or remove it from the data.'
        )
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def clip_boxes(boxes: np.ndarray, height, width) -> np.ndarray:
    """Boxes (float [n, 4], xyxy) cut at the image's border; height and width may be arrays [n]."""
    limit = np.stack(np.broadcast_arrays(width, height, width, height), -1)
    return np.minimum(np.maximum(boxes, 0), limit)


def has_extent(boxes: np.ndarray) -> np.ndarray:
    """Which boxes (xyxy) are at least one pixel wide and high: bool [n]. Inverted ones and NaN are not."""
    return (boxes[:, 2] - boxes[:, 0] >= 1) & (boxes[:, 3] - boxes[:, 1] >= 1)


@TRANSFORMS.register_module()
class LoadObjectImage(BaseTransform):
    """Reads `img_path` into `img` (RGB uint8 [H, W, 3]) and fills `height` and `width`.

    Where the annotations told no image size, the boxes are clipped, and those outside dropped, here.

    Raises:
        BadImageError: the file's size is not the one of the annotations, and what `read_image` raises.
    """

    def transform(self, results: dict) -> dict:
        img = read_image(results['img_path'])
        size = img.shape[:2]
        told = results.get('height'), results.get('width')
        if None in told:
            boxes = clip_boxes(results['bboxes'], *size)
            keep = has_extent(boxes)
            results.update(bboxes=boxes[keep], **{k: results[k][keep] for k in ('labels', 'scores') if k in results})
            if results['masks'] is not None:
                results['masks'] = [mask for mask, kept in zip(results['masks'], keep) if kept]
        elif told != size:
            hint = ' (an EXIF orientation is not applied: store the pixels upright)' if told == size[::-1] else ''
            raise BadImageError(
                f'image {results["img_path"]} is {size[1]} x {size[0]} pixels but its annotation says '
                f'{told[1]} x {told[0]}{hint}; use the images that the boxes were made on.'
            )
        results['img'], results['height'], results['width'] = img, *size
        return results
