"""Found objects against annotated ones: class-agnostic recall and precision, by pycocotools."""

import contextlib
import copy
import io
import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Dict, Optional

import numpy as np

from ..datasets.files import read_json
from ..datasets.image_io import has_extent
from ..datasets.values import identity, is_crowd, number, numbering
from ..utils.errors import AnnotationError
from ..utils.files import PathLike

if TYPE_CHECKING:
    from pycocotools.coco import COCO

TOPS = (1, 10, 100)
SIZES = ('all', 'small', 'medium', 'large')  # of pycocotools: below 32 x 32 pixels, below 96 x 96, above


def recall_of(found: dict, truth: dict) -> Dict[str, Optional[float]]:
    """Return measures of found objects in percent; labels play no part, and crowd regions (``iscrowd`` or ``ignore``,
    as in all readers here) neither count nor cost.

    ``AR@k``: average over IoU 0.5 to 0.95 of the share of annotated objects met by one of an image's k best. ``AR@10
    IoU 0.5``: at 0.5 alone. ``AR@100 small`` ...: by the annotated objects' size. ``precision@k``: share of the k best
    that meet an annotated object of their own at IoU 0.5. ``merged@10``: share of annotated objects that none of the 10
    best meets, as one of those holds them, to 70 %, together with another object. None: there is nothing to measure.

    Args:
        found: COCO-style, with scores.
        truth: COCO-style, of the same images, which are matched by name.

    Raises:
        AnnotationError: no image in common.
    """
    ids = common_images(found, truth)
    truth = _one_class(truth, {key: key for key in ids.values()}, False)
    found = _one_class(found, ids, True)
    return _measure(found, truth)


def random_boxes(found: dict, seed: int = 0) -> dict:
    """Return ``found`` with every box at a random place of its image: what its sizes and number alone are worth."""
    rng = np.random.default_rng(seed)
    sizes = {image['id']: (image['width'], image['height']) for image in found['images']}
    annotations = []
    for annotation in found['annotations']:
        _, _, w, h = annotation['bbox']
        width, height = sizes[annotation['image_id']]
        x, y = rng.random(2) * (max(width - w, 0), max(height - h, 0))
        annotations.append({**annotation, 'bbox': [float(x), float(y), w, h], 'segmentation': None})
    return {**found, 'annotations': annotations}


def read_result(path: PathLike) -> dict:
    """Return the content of a COCO-style json.

    Raises:
        AnnotationError: it is none.
    """
    try:
        content = read_json(path)
    except OSError as error:
        raise AnnotationError(f'{path} cannot be read ({error.strerror}): name a COCO-style json.') from error
    if not all(isinstance(content.get(key), list) for key in ('images', 'annotations')):
        raise AnnotationError(f'{path} is not of COCO style: it needs images and annotations.')
    return content


def read_truth(path: PathLike) -> dict:
    """The images and boxes of annotations to compare with, as a COCO-style dict: numbers, flags and ids by the one rule
    of all readers, boxes without a pixel left out.

    Raises:
        AnnotationError: it is not of COCO style, or has no box; names the first entry that cannot be used.
    """
    content, images, annotations = read_result(path), [], []
    for i, image in enumerate(content['images']):
        try:
            images.append(dict(id=identity(image['id']), file_name=str(Path(image['file_name']))))
        except (KeyError, TypeError, ValueError):
            raise AnnotationError(
                f'{path}: images[{i}] is not a dict with an id and a file_name; fix or remove it.'
            ) from None
    if len({image['id'] for image in images}) < len(images):
        raise AnnotationError(f'{path} has two images of one id; give each image its own.')
    new = numbering(image['id'] for image in images)
    for i, entry in enumerate(content['annotations']):
        try:
            owner, (x, y, w, h) = identity(entry['image_id']), map(number, entry['bbox'])
            area, crowd = number(entry.get('area') or 0), is_crowd(entry)
        except (AttributeError, KeyError, TypeError, ValueError):
            raise AnnotationError(
                f'{path}: annotations[{i}] is not a dict with an image_id and a bbox [x, y, width, height]; fix or '
                'remove it.'
            ) from None
        box = np.array([[x, y, x + w, y + h]])
        if has_extent(box).all() and np.isfinite(box).all():
            area = area if math.isfinite(area) else 0.0
            annotations.append(dict(image_id=new.get(owner), bbox=[x, y, w, h], area=area, iscrowd=int(crowd)))
    if not annotations:
        raise AnnotationError(f'{path} has no box to compare with: name annotations that have, or leave them out.')
    return dict(images=[{**image, 'id': new[image['id']]} for image in images], annotations=annotations)


def common_images(found: dict, truth: dict) -> Dict[object, object]:
    """Return image ids of ``found`` -> those of ``truth``: by the whole name below the folder, else by the file's own
    name where it is unique in both.

    Raises:
        AnnotationError: no image in common.
    """
    whole = {image['file_name']: image['id'] for image in truth['images']}
    short: Dict[str, object] = {}
    for image in truth['images']:
        name = Path(image['file_name']).name
        short[name] = None if name in short else image['id']
    searched = Counter(Path(image['file_name']).name for image in found['images'])
    ids = {}
    for image in found['images']:
        name = Path(image['file_name']).name
        ids[image['id']] = whole.get(image['file_name'], short.get(name) if searched[name] == 1 else None)
    ids = {ours: theirs for ours, theirs in ids.items() if theirs is not None}
    if not ids:
        raise AnnotationError(
            'the annotations to compare with have none of the images that were searched '
            f'({found["images"][0]["file_name"]}, ...).'
        )
    return ids


def _one_class(content: dict, ids: Dict[object, object], scored: bool) -> dict:
    annotations = []
    for entry in content['annotations']:
        if entry['image_id'] not in ids:
            continue
        x, y, w, h = entry['bbox']
        new = dict(
            id=len(annotations) + 1,
            image_id=ids[entry['image_id']],
            category_id=1,
            bbox=entry['bbox'],
            area=entry.get('area') or w * h,
        )
        new['iscrowd'] = int(is_crowd(entry))
        if scored:
            new['score'] = float(entry.get('score', 1.0))
            new['area'] = w * h
        annotations.append(new)
    return dict(
        images=[dict(id=key) for key in ids.values()], annotations=annotations, categories=[dict(id=1, name='object')]
    )


def _measure(found: dict, truth: dict) -> Dict[str, Optional[float]]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        left, right = COCO(), COCO()
        left.dataset, right.dataset = copy.deepcopy(truth), found
        left.createIndex()
        right.createIndex()
        judge = COCOeval(left, right, 'bbox')
        judge.params.useCats = 0
        judge.params.maxDets = list(TOPS)
        judge.evaluate()
        judge.accumulate()
    recall = judge.eval['recall'][:, 0]  # [IoU, size, top]

    def percent(values: np.ndarray) -> Optional[float]:
        values = values[values > -1]
        return round(100 * float(values.mean()), 2) if len(values) else None

    measures = {f'AR@{top}': percent(recall[:, 0, i]) for i, top in enumerate(TOPS)}
    measures |= {f'AR@{top} IoU 0.5': percent(recall[:1, 0, i]) for i, top in enumerate(TOPS)}
    measures |= {f'AR@100 {size}': percent(recall[:, i, 2]) for i, size in enumerate(SIZES) if i}
    every = [record for record in judge.evalImgs if record and tuple(record['aRng']) == tuple(judge.params.areaRng[0])]
    for top in (10, 100):
        met = [(record['dtMatches'][0, :top] > 0)[~record['dtIgnore'][0, :top].astype(bool)] for record in every]
        met = np.concatenate(met) if met else np.zeros(0)
        measures[f'precision@{top}'] = percent(met.astype(float))
    measures['merged@10'] = percent(_merged(left, right, 10))
    return measures


def _merged(truth: 'COCO', found: 'COCO', top: int) -> np.ndarray:
    """Return 1 for each annotated object that is not met but held with another one by a box, else 0: float [n]."""
    from pycocotools import mask as coco_mask

    merged = [np.zeros(0)]
    for image in truth.getImgIds():
        true = [np.array(entry['bbox'], float) for entry in truth.imgToAnns[image] if not entry['iscrowd']]
        best = sorted(found.imgToAnns[image], key=lambda entry: -entry['score'])[:top]
        if not true or not best:
            merged.append(np.zeros(len(true)))
            continue
        boxes = np.array([entry['bbox'] for entry in best], float)
        met = coco_mask.iou(np.array(true), boxes, [0] * len(boxes)).max(1) >= 0.5
        held = coco_mask.iou(np.array(true), boxes, [1] * len(boxes)) >= 0.7  # of a crowd: the share of the object
        merged.append(~met & (held & (held.sum(0) > 1)).any(1))
    return np.concatenate(merged).astype(float)
