"""Masks of COCO files: polygons and RLE as arrays, and why one can't be used."""

import re
from typing import Any, List, Optional, Tuple

import numpy as np

from ..utils.errors import AnnotationError, BadImageError, printable
from .values import numbers

_RLE_TEXT = re.compile('[0-o]+')  # COCO's code: 48 + 6 bits


def segmentation_to_mask(segm: Any, height: int, width: int) -> np.ndarray:
    """Return a COCO segmentation (list of polygons, RLE with counts as list or string) as bool [height, width].

    Pixels are chosen as pycocotools does, so that areas and IoUs are those of the COCO evaluation.

    Raises:
        AnnotationError: it is no segmentation of an image of this size.
    """
    from pycocotools import mask as coco_mask

    rle = _as_rle(segm, height, width)
    try:
        return coco_mask.decode(rle).astype(bool)
    except ValueError as error:
        raise AnnotationError(f'an RLE mask cannot be decoded ({error}); fix or remove it.') from None


def mask_of(sample: dict, index: int) -> np.ndarray:
    """Return :func:`segmentation_to_mask` of an object of an image, by its ``masks``, ``height`` and ``width``.

    Raises:
        BadImageError: it is none; the message names image and object.
    """
    try:
        return segmentation_to_mask(sample['masks'][index], sample['height'], sample['width'])
    except AnnotationError as error:
        raise BadImageError(f'image {printable(str(sample.get("img_path")))}, object {index}: {error}') from error


def segmentation_area(segm: Any, height: int, width: int) -> float:
    """Return the number of pixels of :func:`segmentation_to_mask`, which is not made."""
    from pycocotools import mask as coco_mask

    return float(coco_mask.area(_as_rle(segm, height, width)))


def _as_rle(segm: Any, height: int, width: int) -> dict:
    from pycocotools import mask as coco_mask

    # pycocotools checks nothing of what it is given, and reads or fills memory accordingly
    fault, polygons = _checked(segm, height, width)
    if fault:
        raise AnnotationError(fault)
    if isinstance(segm, dict):
        return coco_mask.frPyObjects(segm, height, width) if isinstance(segm['counts'], list) else segm
    return coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))


def usable(segm: Any) -> Any:
    """Return a segmentation without polygons of fewer than three points, None if nothing is left."""
    if isinstance(segm, dict) and 'counts' in segm and 'size' in segm:
        return segm
    if isinstance(segm, list):
        return [polygon for polygon in segm if isinstance(polygon, list) and len(polygon) >= 6] or None
    return None


def _checked(segm: Any, height: int, width: int) -> Tuple[Optional[str], List[List[float]]]:
    """Why this is no segmentation of an image of this size, None if it is; its polygons as numbers."""
    if isinstance(segm, dict):
        return _rle_fault(segm, height, width), []
    if (
        not isinstance(segm, list)
        or not segm
        or not all(isinstance(polygon, list) and len(polygon) >= 6 for polygon in segm)
    ):
        return 'a mask is neither an RLE nor a list of polygons of three points or more; fix or remove it.', []
    try:
        polygons = [numbers([polygon], len(polygon))[0] for polygon in segm]
        reach = 2 * max(height, width)
        within = all(len(polygon) % 2 == 0 and (np.abs(polygon) <= reach).all() for polygon in polygons)  # NaN is not
    except (ValueError, TypeError, OverflowError):
        within = False
    if not within:
        return (
            f'a polygon is not a list of x, y, x, y, ... in pixels within or near an image of height {height} and '
            f'width {width}; fix or remove it.',
            [],
        )
    return None, [polygon.tolist() for polygon in polygons]


def _rle_fault(segm: dict, height: int, width: int) -> Optional[str]:
    size, counts = segm.get('size'), segm.get('counts')
    if not isinstance(size, (list, tuple)) or list(size) != [height, width]:
        return (
            f'an RLE mask of size {size} does not fit an image of height {height} and width {width}; use the images '
            'that the masks were made on.'
        )
    if isinstance(counts, list):
        if not all(type(run) is int and run >= 0 for run in counts) or sum(counts) != height * width:
            return (
                f'the counts of an RLE mask are not whole numbers that sum to {height} x {width} pixels; fix or '
                'remove it.'
            )
        return None
    text = counts.decode('latin-1') if isinstance(counts, bytes) else counts
    if not isinstance(text, str) or not _RLE_TEXT.fullmatch(text):
        return "the counts of an RLE mask are neither a list nor text in COCO's code; fix or remove it."
    return None
