"""Boxes made worse on purpose, by known amounts: what an experiment on the worth of objects compares."""

import logging
from typing import Dict, List, Optional, Sequence

import numpy as np
from mmengine.logging import print_log

from ..datasets.values import is_crowd
from ..utils.errors import ConfigError

_TRIES = 50  # places tried for a false box


def degrade(
    content: dict, *, iou: Optional[float] = None, missing: float = 0.0, false: float = 0.0, seed: int = 0
) -> dict:
    """Return COCO-style annotations with worse boxes; masks are left out, crowd regions too.

    Args:
        content: COCO-style, with sizes of images.
        iou: Every box is moved and rescaled in a random direction until it overlaps itself by so much.
        missing: Share of the boxes that are left out.
        false: Share of the boxes in the result that show no object: sizes of true boxes at random places, overlapping
            no true box by more than 0.3. In crowded images there may be room for fewer, which is warned of.
        seed: Of all draws; smaller shares of ``missing`` leave out a part of what larger ones do.

    Raises:
        ConfigError: a share outside [0, 1) or an IoU outside (0, 1].
    """
    if iou is not None and not 0 < iou <= 1:
        raise ConfigError(f'iou must be above 0 and at most 1, got {iou}.')
    for name, share in (('missing', missing), ('false', false)):
        if not 0 <= share < 1:
            raise ConfigError(f'{name} must be a share from 0 to below 1, got {share}.')
    rng = [np.random.default_rng((seed, part)) for part in range(3)]
    sizes = {image['id']: (image['width'], image['height']) for image in content['images']}
    whole = [entry for entry in content['annotations'] if not is_crowd(entry)]
    order = rng[0].permutation(len(whole))
    kept = [whole[i] for i in sorted(order[round(missing * len(whole)) :].tolist())]
    result = []
    for entry in kept:
        box = np.array(entry['bbox'], float)
        moved = box if iou is None else _moved(box, iou, sizes[entry['image_id']], rng[1])
        result.append(_entry(entry['image_id'], moved, entry.get('category_id', 1)))
    by_image: Dict[object, List[Sequence[float]]] = {}
    for entry in whole:
        by_image.setdefault(entry['image_id'], []).append(entry['bbox'])
    ids = list(sizes)
    asked = round(len(kept) * false / (1 - false)) if whole else 0
    for _ in range(asked):
        for _ in range(_TRIES):
            key = ids[int(rng[2].integers(len(ids)))]
            _, _, w, h = whole[int(rng[2].integers(len(whole)))]['bbox']
            width, height = sizes[key]
            if w > width or h > height:
                continue
            box = np.array([*(rng[2].random(2) * (width - w, height - h)), w, h])
            if not by_image.get(key) or overlap(box, np.array(by_image[key], float)).max() <= 0.3:
                result.append(_entry(key, box, whole[0].get('category_id', 1)))
                break
    placed = len(result) - len(kept)
    if placed < asked:
        print_log(
            f'false boxes: there is room for {placed} of {asked} only, the true ones leave no more: '
            f'{placed / len(result):.0%} of the boxes are false, not {false:.0%}',
            logger='current',
            level=logging.WARNING,
        )
    for number, entry in enumerate(result):
        entry['id'] = number + 1
    return dict(images=content['images'], annotations=result, categories=content.get('categories', []))


def _entry(image_id: object, box: np.ndarray, category: object) -> dict:
    x, y, w, h = (round(float(side), 2) for side in box)
    return dict(image_id=image_id, category_id=category, bbox=[x, y, w, h], area=round(w * h, 2), iscrowd=0)


def overlap(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the IoU of a box (x, y, w, h) with others [n, 4]."""
    low = np.maximum(box[:2], others[:, :2])
    high = np.minimum(box[:2] + box[2:], others[:, :2] + others[:, 2:])
    shared = (high - low).clip(0).prod(1)
    return shared / (box[2:].prod() + others[:, 2:].prod(1) - shared)


def _moved(box: np.ndarray, iou: float, size: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """The box, shifted and rescaled along one random direction, inside its image, as far as ``iou`` says."""
    best = box
    for _ in range(8):  # at an image's border a direction may lead nowhere
        direction = rng.standard_normal(4)
        direction /= np.abs(direction).max()

        def at(step: float, direction: np.ndarray = direction) -> np.ndarray:
            side = box[2:] * np.exp(step * direction[2:])
            low = box[:2] + box[2:] / 2 + step * direction[:2] * box[2:] - side / 2
            high = np.minimum(low + side, size)
            low = np.maximum(low, 0)
            return np.concatenate([low, np.maximum(high - low, 1e-6)])

        near, far = 0.0, 2.0
        for _ in range(40):
            middle = (near + far) / 2
            near, far = (middle, far) if overlap(at(middle), box[None])[0] > iou else (near, middle)
        found = at(near)
        if abs(overlap(found, box[None])[0] - iou) < abs(overlap(best, box[None])[0] - iou):
            best = found
        if abs(overlap(best, box[None])[0] - iou) < 0.01:
            break
    return best
