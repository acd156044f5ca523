"""What a source finds in an image, and what is kept of it."""

from dataclasses import dataclass
from typing import List, Optional, Sequence

import cv2
import numpy as np
import torch
from torchvision.ops import nms


@dataclass
class Found:
    """Objects of one image, best first.

    Attributes:
        boxes: float [n, 4], x1, y1, x2, y2 in pixels of the image.
        scores: float [n], higher is better; comparable within a source, not between sources.
        masks: n COCO RLEs of the image's size, or None.
    """

    boxes: np.ndarray
    scores: np.ndarray
    masks: Optional[List[dict]] = None

    def take(self, index: Sequence[int]) -> 'Found':
        """Return the objects of these numbers, in this order."""
        masks = None if self.masks is None else [self.masks[i] for i in index]
        return Found(self.boxes[index], self.scores[index], masks)


def keep_best(boxes: np.ndarray, scores: np.ndarray, iou: float, top: int) -> np.ndarray:
    """Return the numbers of at most ``top`` boxes, best first, of which no two overlap by more than ``iou``; labels
    play no part."""
    if not len(boxes):
        return np.zeros(0, np.int64)
    order = np.argsort(-scores, kind='stable')  # torchvision's own sort breaks ties as it likes
    ranks = torch.arange(len(order), 0, -1, dtype=torch.float32)
    kept = nms(torch.as_tensor(boxes[order], dtype=torch.float32), ranks, iou)
    return order[kept.numpy()[:top]]


def useful(boxes: np.ndarray, height: int, width: int, min_side: float, max_area: float) -> np.ndarray:
    """Return which boxes are at least ``min_side`` (share of the image's shorter side) wide and high and cover at most
    ``max_area`` of it: bool [n]."""
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    least = max(min_side * min(height, width), 2)
    return (w >= least) & (h >= least) & (w * h <= max_area * height * width)


def encode(mask: np.ndarray, height: int, width: int) -> dict:
    """Return the COCO RLE, counts as text, of a mask bool [h, w] enlarged to the image's size."""
    from pycocotools import mask as coco_mask

    whole = cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
    rle = coco_mask.encode(np.asfortranarray(whole))
    return dict(size=[height, width], counts=rle['counts'].decode())


def shrink(image: np.ndarray, size: int) -> np.ndarray:
    """Return the image with its longer side at most ``size`` pixels."""
    height, width = image.shape[:2]
    factor = size / max(height, width)
    if factor >= 1:
        return image
    return cv2.resize(
        image, (max(round(width * factor), 1), max(round(height * factor), 1)), interpolation=cv2.INTER_AREA
    )
