"""Objects from an image's colours alone: no weights, no labels.

Felzenszwalb's segmentation (scikit-image) gives small regions; neighbours that are most alike are merged, one pair at a
time, as in selective search (Uijlings et al., IJCV 2013), and every region on the way is a candidate.
"""

import heapq
from dataclasses import dataclass
from importlib.util import find_spec
from typing import ClassVar, List, Sequence

import cv2
import numpy as np

from ..utils.errors import ConfigError
from .found import Found, encode, keep_best, shrink, useful

_BINS = 12  # of each channel's histogram
_TURNS = 8  # directions of the gradient


@dataclass
class Classic:
    """Source ``classic``.

    Args:
        size: Longer side that images are shrunk to, in pixels.
        scale: Felzenszwalb's: larger gives larger first regions.
        top: Objects kept of an image.
        iou: Of two that overlap by more, the better one stays.
        min_side: Least side of a box, as a share of the image's shorter side.
        max_area: Largest box, as a share of the image.
    """

    size: int = 320
    scale: float = 60.0
    top: int = 30
    iou: float = 0.7
    min_side: float = 0.05
    max_area: float = 0.7
    name = 'classic'
    on_gpu = False
    reading: ClassVar[dict] = {}

    def __post_init__(self):
        if find_spec('skimage') is None:
            raise ConfigError('the source classic needs scikit-image: pip install scikit-image.')

    def __call__(self, images: Sequence[np.ndarray]) -> List[Found]:
        return [self._find(image) for image in images]

    def _find(self, image: np.ndarray) -> Found:
        from skimage.segmentation import felzenszwalb

        height, width = image.shape[:2]
        small = shrink(image, self.size)
        least = max(round(2e-4 * small.shape[0] * small.shape[1]), 10)
        labels = felzenszwalb(small, scale=self.scale, sigma=0.8, min_size=least)
        parents, boxes, scores = group(small, labels)
        boxes = boxes * np.tile([width / small.shape[1], height / small.shape[0]], 2)
        good = np.flatnonzero(useful(boxes, height, width, self.min_side, self.max_area))
        kept = good[keep_best(boxes[good], scores[good], self.iou, self.top)]
        masks = [encode(mask, height, width) for mask in region_masks(labels, parents, kept)]
        return Found(boxes[kept], scores[kept], masks)


def _histograms(small: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """Colour (CIE Lab) and texture (directions of the gradient) of each region, each summing to 1: [count, bins]."""
    lab = cv2.cvtColor(small, cv2.COLOR_RGB2LAB)
    grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32)
    dx, dy = cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)
    strength, turn = cv2.cartToPolar(dx, dy)
    flat, area = labels.ravel(), np.bincount(labels.ravel(), minlength=count)[:, None]
    parts = []
    for channel in range(3):
        bins = lab[..., channel].ravel().astype(np.int64) * _BINS // 256
        parts.append(np.bincount(flat * _BINS + bins, minlength=count * _BINS).reshape(count, _BINS) / (3 * area))
    bins = np.minimum((turn.ravel() / (2 * np.pi) * _TURNS).astype(np.int64), _TURNS - 1)
    texture = np.bincount(flat * _TURNS + bins, strength.ravel(), count * _TURNS).reshape(count, _TURNS)
    return np.concatenate(parts, 1), texture / (area * 512)


def group(small: np.ndarray, labels: np.ndarray):
    """Merge the regions of an image until one is left.

    Args:
        small: uint8 [h, w, 3].
        labels: Numbers of the first regions, int [h, w], 0 to n - 1.

    Returns:
        tuple: ``parents`` int [2n - 1], which region each became part of (-1: none); ``boxes`` float [2n - 1, 4] in
        pixels; ``scores`` float [2n - 1] in 0..1: how much the colours of a region differ from those around it, times
        the share of its box that it fills, times the square root of its share of the image, divided by 1 + the number
        of the image's sides that it touches.
    """
    count = int(labels.max()) + 1
    total = 2 * count - 1
    pixels = labels.size
    colour, texture = _histograms(small, labels, count)
    colour = np.concatenate([colour, np.zeros((count - 1, colour.shape[1]))])
    texture = np.concatenate([texture, np.zeros((count - 1, texture.shape[1]))])
    area = np.concatenate([np.bincount(labels.ravel(), minlength=count), np.zeros(count - 1)])
    boxes = np.zeros((total, 4))
    rows, cols = np.indices(labels.shape)
    for side, values, reduce in (
        (0, cols, np.minimum),
        (1, rows, np.minimum),
        (2, cols + 1, np.maximum),
        (3, rows + 1, np.maximum),
    ):
        edge = np.full(count, 1 << 30) if reduce is np.minimum else np.zeros(count, np.int64)
        reduce.at(edge, labels.ravel(), values.ravel())
        boxes[:count, side] = edge
    neighbours = [set() for _ in range(total)]
    for a, b in ((labels[:, :-1], labels[:, 1:]), (labels[:-1], labels[1:])):
        pairs = np.unique(np.stack([a[a != b], b[a != b]], 1), axis=0)
        for i, j in pairs.tolist():
            neighbours[i].add(j)
            neighbours[j].add(i)

    def alike(i: int, others: np.ndarray) -> np.ndarray:
        look = np.minimum(colour[i], colour[others]).sum(1) + np.minimum(texture[i], texture[others]).sum(1)
        joined = np.concatenate(
            [np.minimum(boxes[i, :2], boxes[others, :2]), np.maximum(boxes[i, 2:], boxes[others, 2:])], 1
        )
        box = (joined[:, 2] - joined[:, 0]) * (joined[:, 3] - joined[:, 1])
        both = area[i] + area[others]
        # small ones first, and those that fill their box
        return look + (1 - both / pixels) + (1 - (box - both) / pixels)

    def contrast(i: int) -> float:
        others = np.array(sorted(neighbours[i]), np.int64)
        if not len(others):
            return 0.0
        weight = np.minimum(area[others], area[i])  # what is around it, not all of what is beyond
        return 1 - np.minimum(colour[i], weight @ colour[others] / weight.sum()).sum()

    heap = []
    for i in range(count):
        others = np.array(sorted(j for j in neighbours[i] if j > i), np.int64)
        if len(others):
            heap += [(-s, i, j) for s, j in zip(alike(i, others).tolist(), others.tolist())]
    heapq.heapify(heap)
    parents, alive = np.full(total, -1), [True] * total
    contrasts = np.array([contrast(i) for i in range(count)] + [0.0] * (count - 1))
    new = count
    while heap:
        _, i, j = heapq.heappop(heap)
        if not (alive[i] and alive[j]):
            continue
        alive[i] = alive[j] = False
        parents[i] = parents[j] = new
        area[new] = area[i] + area[j]
        for table in (colour, texture):
            table[new] = (area[i] * table[i] + area[j] * table[j]) / area[new]
        boxes[new] = [*np.minimum(boxes[i, :2], boxes[j, :2]), *np.maximum(boxes[i, 2:], boxes[j, 2:])]
        around = (neighbours[i] | neighbours[j]) - {i, j}
        neighbours[new] = around
        for k in around:
            neighbours[k] -= {i, j}
            neighbours[k].add(new)
        others = np.array(sorted(around), np.int64)
        if len(others):
            for s, k in zip(alike(new, others).tolist(), others.tolist()):
                heapq.heappush(heap, (-s, k, new))
        contrasts[new] = contrast(new)
        new += 1
    parents, boxes, area = parents[:new], boxes[:new], area[:new]
    fill = area / ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
    touching = (boxes[:, :2] <= 0).sum(1) + (boxes[:, 2:] >= [labels.shape[1], labels.shape[0]]).sum(1)
    return parents, boxes, contrasts[:new] * fill * np.sqrt(area / pixels) / (1 + touching)


def region_masks(labels: np.ndarray, parents: np.ndarray, regions: Sequence[int]) -> List[np.ndarray]:
    """Return the masks bool [h, w] of regions of the hierarchy."""
    count = int(labels.max()) + 1
    masks = []
    for region in regions:
        inside = np.zeros(len(parents), bool)
        inside[region] = True
        for i in range(region - 1, -1, -1):  # parents have higher numbers
            inside[i] = parents[i] >= 0 and inside[parents[i]]
        masks.append(inside[:count][labels])
    return masks
