"""The annotations of a detector's run, looked at before anything is built: what can be computed is, what can't is told
in one sentence.

mmdet and pycocotools take any json and fail later: in a worker, in the loss, or at the first validation.
"""

import json
import os
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np
from mmdet.datasets import CocoDataset
from mmdet.registry import DATASETS
from mmengine.config import Config
from pycocotools import mask as coco_mask

from ..datasets.annotations import CACHE_FROM, cache_folder, coco_table, source_of
from ..datasets.bad_images import BAD_SHARE, too_many
from ..datasets.demo import render_if_asked
from ..datasets.files import first_present, read_json, shown
from ..datasets.image_io import size_of
from ..datasets.layout import check_names, part_of
from ..datasets.segmentation import usable
from ..datasets.values import flag, identity, is_crowd, number, numbering, side
from ..utils.errors import AnnotationError, BadImageError, ConfigError, FileWriteError, MissingFileError, too_many_bad
from ..utils.files import atomic_write_text
from ..utils.nested import dicts, walk

_PARTS = ('train', 'val', 'test')


def check_detection_data(cfg: Config, parts: Sequence[str] = _PARTS) -> List[str]:
    """Check what the loaders and evaluators of a detector will read.

    A json that lacks something that can be computed (areas, ``iscrowd``, ids of annotations, sizes of images, numbers
    that are written as text, polygons of fewer than three points beside others) is written anew to
    ``work_dir/annotations``, and the config reads that one.

    Args:
        cfg: Changed in place; with its ``work_dir``.
        parts: Of 'train', 'val' and 'test', those that will be used.

    Returns:
        Lines for the log.

    Raises:
        AnnotationError, MissingFileError: a file can't be used as it is; the message names what in it.
        ConfigError: the classes of the config are not those of the file, the heads are made for another number of
            them, or a part of a file's images is to be evaluated.
    """
    lines: List[str] = []
    classes = None
    for part in parts:
        loader = cfg.get(f'{part}_dataloader') or {}
        for dataset in _coco_datasets(loader.get('dataset')):
            evaluators = [] if part == 'train' else _evaluators(cfg.get(f'{part}_evaluator'))
            path = _annotation_file(dataset)
            if dataset.get('indices') is not None and evaluators:
                raise ConfigError(
                    f'{part}_dataloader.dataset.indices leaves images out, whose objects the evaluation by '
                    f'{shown(path)} would count as missed: name an annotation file of the images that are meant.'
                )
            if part == 'test' and not read_json(path).get('annotations'):
                continue  # a test split whose answers are kept elsewhere
            found = look(path, _folder(dataset), dataset.get('max_bad_share', BAD_SHARE) if part == 'train' else 0)
            _check_thinnest(dataset, found.thinnest, path)
            if _needs_masks(dataset, evaluators) and found.without_mask:
                raise AnnotationError(
                    f'annotation file {shown(path)}: {found.without_mask} of {sum(found.objects.values())} objects '
                    f'(the first: annotations[{found.first_without_mask}]) have no mask of three points or more, which '
                    'Mask R-CNN needs; for boxes alone take the faster-rcnn_* config of the same name.'
                )
            if _needs_masks(dataset, evaluators) and found.misfit:  # no detection would meet it
                raise AnnotationError(
                    f'annotation file {shown(path)}: {found.misfit} (height, width): use the images that the masks '
                    'were made on, or fix it.'
                )
            told = _check_classes(dataset, found, path, part)
            classes = classes or told
            lines += _left_out(told, found, path)
            if part == 'train' and found.thin:
                lines.append(f'{shown(path)}: {found.thin} objects less than a pixel wide or high are not learned')
            least = (dataset.get('filter_cfg') or {}).get('min_size', 0) if part == 'train' else 0
            short = sum(count for side, count in found.sides.items() if int(side) < least)
            if short:
                lines.append(
                    f'{shown(path)}: {short} images with a side below {least} px are not trained on '
                    '(train_dataloader.dataset.filter_cfg.min_size)'
                )
            if found.content is not None:
                fresh = Path(cfg.work_dir, 'annotations', f'{part}_{Path(path).name}').absolute()
                fresh.parent.mkdir(parents=True, exist_ok=True)
                atomic_write_text(fresh, json.dumps(found.content))
                for evaluator in evaluators:
                    if evaluator.get('ann_file') and os.path.abspath(evaluator['ann_file']) == os.path.abspath(path):
                        evaluator['ann_file'] = str(fresh)
                dataset['ann_file'] = str(fresh)
                lines.append(f'{shown(path)}: {", ".join(found.completed)}; {fresh} is used')
    if classes is not None:
        _check_heads(cfg, classes)
    return lines


def _coco_datasets(dataset: Any) -> Iterator[dict]:
    """The dicts of COCO-style data sets, inside any wrappers."""
    if not isinstance(dataset, dict):
        return
    found = dataset.get('type')
    found = DATASETS.get(found) if isinstance(found, str) else found
    if isinstance(found, type) and issubclass(found, CocoDataset) and dataset.get('ann_file'):
        yield dataset
    for inner in [dataset.get('dataset'), *(dataset.get('datasets') or ())]:
        yield from _coco_datasets(inner)


def _evaluators(found: Any) -> List[dict]:
    return [each for each in (found if isinstance(found, (list, tuple)) else [found]) if isinstance(each, dict)]


def _joined(dataset: dict, path: str) -> str:
    return path if os.path.isabs(path) else os.path.join(dataset.get('data_root') or '', path)


def _annotation_file(dataset: dict) -> str:
    if str(dataset['type']).endswith('DemoDetectionDataset'):
        render_if_asked(dataset['data_root'])
    path = _joined(dataset, dataset['ann_file'])
    if not os.path.isfile(path):
        raise MissingFileError(
            f'annotation file {shown(path)} does not exist; check data_root and ann_file (the shipped configs take '
            'their roots from COCO_ROOT and ODIS_DEMO_ROOT).'
        )
    return path


def _folder(dataset: dict) -> str:
    return _joined(dataset, (dataset.get('data_prefix') or {}).get('img') or '')


def _needs_masks(dataset: dict, evaluators: Sequence[dict]) -> bool:
    steps = [step for step in dataset.get('pipeline') or () if isinstance(step, dict)]
    loads = any(str(step.get('type')).endswith('LoadBoxesAndMasks') or step.get('with_mask') for step in steps)
    return loads or any('segm' in np.atleast_1d(evaluator.get('metric', ())) for evaluator in evaluators)


@dataclass
class Look:
    """What a COCO-style json holds.

    Attributes:
        categories: Their names.
        objects: Number of objects by name of the category.
        without_mask: Objects that have neither an RLE nor a polygon of three points or more.
        first_without_mask: Index of the first of them.
        completed: What was completed, in words.
        content: The completed content; None if nothing was missing.
        thin: Objects less than a pixel wide or high.
        thinnest: File name, height and width of the image with the least ratio of its sides.
        sides: Number of images by their short side in pixels, as text.
        misfit: What is wrong with the first RLE mask of another size than its image; '' if none is.
    """

    categories: List[str]
    objects: Dict[str, int]
    without_mask: int = 0
    first_without_mask: int = -1
    completed: List[str] = field(default_factory=list)
    content: Optional[dict] = None
    thin: int = 0
    thinnest: Sequence[Any] = ('', 1, 1)
    sides: Dict[str, int] = field(default_factory=dict)
    misfit: str = ''


def look(path: str, folder: str, max_bad_share: float = 0) -> Look:
    """Do :func:`complete`; a large file that needs nothing completed is noted beside the caches of annotations and read
    once."""
    place = cache_folder()
    if place is None or os.path.getsize(path) < CACHE_FROM:
        return complete(path, folder, max_bad_share)
    source = source_of(path)
    note = place / f'{source["content"]}.looked5'  # the rules' version
    try:
        noted = json.loads(note.read_text('utf-8'))
        # images come and go without the file: where none may be missing, each is looked for
        names = [] if max_bad_share else [image['file_name'] for image in read_json(path)['images']]
        there = all(os.path.isfile(os.path.join(folder, name)) for name in (noted.pop('first'), *names))
        if noted.pop('source') == source and there:
            return Look(**noted)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    found = complete(path, folder, max_bad_share)
    if found.content is None:
        first = first_present([image['file_name'] for image in read_json(path)['images']], folder, shown(path))
        with suppress(OSError, FileWriteError):
            place.mkdir(parents=True, exist_ok=True)
            atomic_write_text(note, json.dumps({**vars(found), 'source': source, 'first': first}))
    return found


def complete(path: str, folder: str, max_bad_share: float = 0) -> Look:
    """Read a COCO-style json and complete it.

    Args:
        path: Of the json.
        folder: Of the images.
        max_bad_share: Share of the images that are left out where the json lacks their size and the file does not tell
            it; see :func:`~odis_mm.utils.errors.too_many_bad`.

    Raises:
        BadImageError: more are.
        AnnotationError: it is not of COCO style; an image, annotation or category is not understood.
        MissingFileError: none of its images is found, or, where none may be bad, not every one.
    """
    content = read_json(path)
    if 'images' not in content and 'annotations' not in content:
        raise AnnotationError(
            f'annotation file {shown(path)} is not of COCO style, which detectors need: it has no images and '
            'annotations.'
        )
    if not content.get('annotations'):
        raise AnnotationError(
            f'annotation file {shown(path)} has no annotations, by which a detector is trained and evaluated: name '
            'one with objects.'
        )
    coco_table(content, path)  # says in one sentence what is not understood
    if not content.get('categories'):
        raise AnnotationError(f'annotation file {shown(path)} has no categories: name the classes of its objects.')
    check_names(content, path)
    names = [image['file_name'] for image in content['images']]
    first_present(names, folder, shown(path))
    missing = [] if max_bad_share else [name for name in names if not os.path.isfile(os.path.join(folder, name))]
    if missing:  # else the first evaluation would end the run
        raise MissingFileError(
            f'{len(missing)} of {len(names)} images of {shown(path)} do not exist, and here none may be missing '
            f'({shown(os.path.join(folder, missing[0]))}, ...): fetch them, or remove them from the annotations.'
        )
    done: Counter = Counter()
    kept_images, bad = [], []
    for image in content['images']:
        try:
            _complete_image(image, folder, done)
            kept_images.append(image)
        except BadImageError:
            if not max_bad_share:
                raise
            bad.append(os.path.join(folder, image['file_name']))
    if too_many_bad(len(bad), len(content['images']), max_bad_share):
        raise too_many(bad, len(content['images']), max_bad_share)
    if bad:
        content = part_of(content, kept_images)
        done[f'unreadable images left out ({", ".join(map(shown, bad))})'] = len(bad)
    for category in content['categories']:
        _put(category, 'id', identity(category['id']), 'numbers that were text', done)
        # mmdet looks classes up by their names, which are text
        _put(category, 'name', str(category['name']), 'names of classes that were numbers', done)
    for i, annotation in enumerate(content['annotations']):
        if annotation.get('category_id') is None:
            raise AnnotationError(
                f'annotation file {shown(path)}: annotations[{i}] has no category_id; give it one or remove it.'
            )
        for key in ('image_id', 'category_id'):
            _put(annotation, key, identity(annotation[key]), 'numbers that were text', done)
    for what, key in (('images', 'image_id'), ('categories', 'category_id')):
        _number_mixed(content, what, key, done)
    sizes = {image['id']: (image['height'], image['width']) for image in content['images']}
    names = {category['id']: category['name'] for category in content['categories']}
    found, kept = Look(list(names.values()), Counter()), []
    for i, annotation in enumerate(content['annotations']):
        _complete_annotation(annotation, sizes, done)
        mask, size = annotation.get('segmentation'), sizes.get(annotation['image_id'])
        if (
            not found.misfit
            and size
            and mask
            and isinstance(mask, dict)
            and np.ravel(mask['size']).tolist() != list(size)
        ):
            found.misfit = f'the RLE mask of annotations[{i}] has the size {mask["size"]} and its image {list(size)}'
        if not _is_box(annotation, sizes):
            done['objects left out whose box is no box, or outside of its image'] += 1
            continue
        kept.append(annotation)
        found.thin += min(annotation['bbox'][2:]) < 1
        found.objects[names.get(annotation['category_id'], 'an unknown category')] += 1
        if not annotation.get('segmentation'):
            found.first_without_mask = found.first_without_mask if found.without_mask else i
            found.without_mask += 1
    content['annotations'] = kept
    if kept and found.thin == len(kept):
        raise AnnotationError(
            f'annotation file {shown(path)}: all boxes are less than a pixel wide or high: '
            'boxes are [x, y, width, height] in pixels, not shares of the image.'
        )
    found.thinnest = min(
        ([image['file_name'], image['height'], image['width']] for image in content['images']),
        key=lambda image: min(image[1:]) / max(image[1:]),
    )
    found.sides = Counter(str(min(image['height'], image['width'])) for image in content['images'])
    ids = [annotation.get('id') for annotation in content['annotations']]
    # pycocotools marks a detection as right by the id of its object: 0 would be a miss, and text is no number
    if any(not isinstance(key, int) or key < 1 for key in ids) or len(set(ids)) < len(ids):
        for i, annotation in enumerate(content['annotations'], 1):
            annotation['id'] = i
        done['annotations numbered anew, as ids were missing, there twice, or not numbers from 1 on'] = len(ids)
    found.completed = [f'{count} {what}' for what, count in done.items()]
    found.content = content if done else None
    return found


def _put(holder: dict, key: str, value: Any, what: str, done: Counter) -> None:
    if type(holder.get(key)) is not type(value) or holder[key] != value:
        done[what] += 1
    holder[key] = value


def _complete_image(image: dict, folder: str, done: Counter) -> None:
    _put(image, 'id', identity(image['id']), 'numbers that were text', done)
    height, width = side(image.get('height')), side(image.get('width'))
    if height is None or width is None:
        path = os.path.join(folder, image['file_name'])
        height, width = size_of(path)
        done['sizes of images read from their files'] += 1
        image['height'], image['width'] = height, width
        return
    for key, value in (('height', height), ('width', width)):
        _put(image, key, value, 'numbers that were text', done)


def _number_mixed(content: dict, what: str, key: str, done: Counter) -> None:
    """Number images or categories whose ids are numbers and text."""
    numbers = numbering(entry['id'] for entry in content[what])
    if all(key == new for key, new in numbers.items()):
        return
    for entry in content[what]:
        entry['id'] = numbers[entry['id']]
    for annotation in content['annotations']:
        annotation[key] = numbers.get(annotation[key], 0)  # 0: unknown, as it was
    done[f'{what} numbered anew, as some ids were numbers and others text'] = len(numbers)


def _complete_annotation(annotation: dict, sizes: Dict[Any, Tuple[int, int]], done: Counter) -> None:
    box = annotation['bbox']
    if not all(type(value) in (int, float) for value in box):
        annotation['bbox'] = box = [number(value) for value in box]
        done['numbers that were text'] += 1
    if annotation.get('iscrowd') is None:
        annotation['iscrowd'] = 0
        done['annotations given iscrowd=0'] += 1
    _put(annotation, 'iscrowd', int(flag(annotation['iscrowd'])), 'numbers that were text', done)
    if is_crowd(annotation) and not annotation['iscrowd']:
        annotation['iscrowd'] = 1
        done['annotations with ignore taken as crowd regions'] += 1
    segmentation = annotation.get('segmentation')
    kept = usable(segmentation)
    if isinstance(kept, list):
        try:
            kept = [[number(value) for value in polygon] for polygon in kept]
            kept = [polygon for polygon in kept if len(polygon) % 2 == 0 and np.isfinite(polygon).all()]
        except ValueError:
            kept = []
    kept = kept or []
    if segmentation and kept != segmentation:
        done['masks without their polygons of fewer than three points'] += 1
        annotation['segmentation'] = kept
    area, told = annotation.get('area'), None
    with suppress(ValueError):  # what is no number tells nothing
        told = number(area)
    # mmdet leaves objects of area 0 out of the training, without a word
    if told is None or not np.isfinite(told) or (told <= 0 < min(box[2:])):
        annotation['area'] = _area(kept, box, sizes.get(annotation['image_id'])) or float(box[2] * box[3])
        done['areas computed'] += 1
    elif type(area) not in (int, float):
        annotation['area'] = number(area)
        done['numbers that were text'] += 1


def _is_box(annotation: dict, sizes: Dict[Any, Tuple[int, int]]) -> bool:
    """Not one of NaN, turned inside out, or outside of its image, which counts as missed whatever a detector finds."""
    x, y, w, h = annotation['bbox']
    height, width = sizes.get(annotation['image_id'], (np.inf, np.inf))
    return bool(np.isfinite(annotation['bbox']).all()) and w >= 0 and h >= 0 and -w < x < width and -h < y < height


def _check_thinnest(dataset: dict, image: Sequence[Any], path: str) -> None:
    """Refuse an image of which resizing would leave nothing."""
    name, height, width = image
    for scale in _scales(dataset.get('pipeline')):
        zoom = min(max(scale) / max(height, width), min(scale) / min(height, width))
        if zoom * min(height, width) < 0.5:
            raise AnnotationError(
                f'image {name} of {shown(path)} is {width} x {height} pixels, and less than a pixel wide where it is '
                f'resized to {max(scale)} x {min(scale)}: cut it into pieces, or remove it.'
            )


def _scales(pipeline: Any) -> Iterator[Sequence[int]]:
    """Those of the steps that resize with a fixed ratio of the sides."""
    for step in dicts(pipeline):
        if str(step.get('type')).endswith('Resize') and step.get('keep_ratio'):
            found = [step['scale']] if 'scale' in step else step.get('scales') or ()
            yield from (scale for scale in found if np.shape(scale) == (2,))


def _area(segmentation: Any, box: Sequence[float], size: Optional[Tuple[int, int]]) -> float:
    if segmentation and size is not None:
        try:
            return float(np.sum(coco_mask.area(coco_mask.merge(_rles(segmentation, size)))))
        except Exception:  # pycocotools has no class of its own for what it can't read: the box will do
            pass
    return float(box[2] * box[3])


def _rles(segmentation: Any, size: Tuple[int, int]) -> list:
    if isinstance(segmentation, dict):
        return [
            coco_mask.frPyObjects(segmentation, *size) if isinstance(segmentation['counts'], list) else segmentation
        ]
    return coco_mask.frPyObjects(segmentation, *size)


def _check_classes(dataset: dict, found: Look, path: str, part: str) -> Tuple[str, ...]:
    """The classes that the data set will use."""
    given = (dataset.get('metainfo') or {}).get('classes')
    option = f'{part}_dataloader.dataset.metainfo.classes'
    if isinstance(given, str):
        raise ConfigError(
            f'{option}={given!r} must be a list of names; for one class, with the comma of a tuple: ({given!r},).'
        )
    known = found.categories
    if len(set(known)) < len(known):
        twice = next(name for name in known if known.count(name) > 1)
        raise AnnotationError(
            f'annotation file {shown(path)}: two categories are named {twice!r}: merge or rename them.'
        )
    names = ', '.join(map(repr, known[:20])) + (', ...' if len(known) > 20 else '')
    cls = dataset['type'] if isinstance(dataset['type'], type) else DATASETS.get(dataset['type'])
    classes = tuple(given or cls.METAINFO['classes'])
    missing = [name for name in classes if name not in known]
    if len(missing) == len(classes) or (given and missing):
        asked = ', '.join(map(repr, missing[:5])) + (', ...' if len(missing) > 5 else '')
        literal = '(' + ''.join(f'{name!r},' for name in known[:20]) + ')'
        raise ConfigError(
            f'annotation file {shown(path)} has the categories {names}, but the config asks for {asked}: set '
            f'{option}="{literal}" (and the same for the other splits), and num_classes of the heads to their number.'
        )
    shared = [name for name in known if name in classes]
    if cls.load_data_list is CocoDataset.load_data_list and shared != list(classes[: len(shared)]):
        raise ConfigError(
            f'annotation file {shown(path)} lists the classes {", ".join(map(repr, shared[:20]))}, by whose order '
            f'mmdet numbers them, but the config {", ".join(map(repr, classes[:20]))}: objects would get the names of '
            f'others; set {option}="{tuple(shared)}" (and the same for the other splits), and num_classes of the heads '
            'to their number.'
        )
    if part == 'train' and not any(found.objects.get(name) for name in classes):
        raise ConfigError(
            f'annotation file {shown(path)} has no object of the classes {", ".join(map(repr, classes[:20]))}.'
        )
    return classes


def _left_out(classes: Sequence[str], found: Look, path: str) -> List[str]:
    left = [f'{count} of {name!r}' for name, count in found.objects.items() if name not in classes]
    if not left:
        return []
    return [
        f'{shown(path)}: objects left out, as their category is not among the classes of the config: '
        f'{", ".join(left[:10])}' + (', ...' if len(left) > 10 else '')
    ]


def _check_heads(cfg: Config, classes: Sequence[str]) -> None:
    wrong = {}
    for name, found in walk(cfg.get('model') or {}, 'model'):
        place, _, key = name.rpartition('.')
        heads = any(head in place for head in ('bbox_head', 'mask_head'))
        if key == 'num_classes' and heads and found != len(classes):
            wrong[name] = found
    if wrong:
        told = ', '.join(f'{name}={found}' for name, found in wrong.items())
        options = ' '.join(f'{name}={len(classes)}' for name in wrong)
        raise ConfigError(
            f'the data has {len(classes)} classes '
            f'({", ".join(map(repr, classes[:10]))}{", ..." if len(classes) > 10 else ""}), but {told}: set '
            f'--cfg-options {options}.'
        )
