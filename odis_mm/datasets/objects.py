"""Images with objects: COCO-style files, plain folders and lists, ImageNet folders with a file of boxes."""

import inspect
import json
import os
import re
from pathlib import Path
from typing import List, Optional, Sequence, Tuple

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log
from mmpretrain.registry import DATASETS, TRANSFORMS

from ..utils.errors import AnnotationError, BadImageError, ConfigError, MissingFileError
from .draws import seed_of
from .image_io import IMAGE_SUFFIXES, clip_boxes, has_extent

_RLE_TEXT = re.compile('[0-o]+')  # COCO's code: 48 + 6 bits
REPLACEMENTS = 10  # tries to find another image for a bad one


@DATASETS.register_module()
class ObjectDataset(BaseDataset):
    """Images, each with its objects: boxes, masks if there are any, and labels (for frozen metrics only).

    What it reads follows from `ann_file`:

    - a `.json` in COCO style (`images`, `annotations`): boxes; polygons or RLE where present. `file_name` is relative
      to the image folder, so boxes for ImageNet's folders (`n01440764/x.JPEG`) come the same way;
    - a `.json` dict {path relative to the image folder: [[x1, y1, x2, y2], ...]}: boxes in pixels;
    - any other file: a list, one path a line, of images without objects;
    - nothing: every image below the image folder, without objects.

    The image folder is `data_root/data_prefix`; `ann_file` is relative to `data_root` too unless absolute.

    Each draw of an image has its own generator, from (seed, epoch, index), so that views depend neither on the number of workers nor on their
    order. The epoch comes with the index (:class:`~odis_mm.datasets.draws.Draw`); a plain index gives the views of epoch 0 when it is asked
    for first, of epoch 1 the second time, and so on.

    A bad image (see `BadImageError`) raises, unless some are allowed by `max_bad_share`: then another image, drawn from (seed,
    epoch, index), takes its place, and `bad_images` names it; `BadImageHook` tells them in the log.

    Args:
        data_prefix: folder of the images, or dict(img_path=folder) as elsewhere in OpenMMLab.
        seed: of the views and of the subset, >= 0.
        data_fraction: share of the images to use, in (0, 1]; a smaller subset of a seed is part of its larger ones.
        with_masks: keep the masks; without, COCO train2017 takes a fifth of the memory.
        with_crowd: keep regions of many objects (`iscrowd`).
        keep_empty: keep images without objects; the whole image is their object then.
        min_score: leave out objects whose `score` is lower; one without a score counts as 1.
        max_bad_share: share of the images that may be bad; above it, the next bad one raises with the list. 0: the first one raises.
        metainfo, indices, serialize_data, lazy_init: as in mmengine's BaseDataset.

    Raises:
        MissingFileError: a file or folder is missing.
        ConfigError: a file can't be understood or holds nothing to use.
    """

    def __init__(
        self,
        data_root='',
        ann_file='',
        data_prefix='',
        pipeline=(),
        seed: int = 0,
        data_fraction: float = 1.0,
        with_masks: bool = True,
        with_crowd: bool = False,
        keep_empty: bool = True,
        min_score: Optional[float] = None,
        max_bad_share: float = 0.0,
        metainfo=None,
        indices=None,
        serialize_data: bool = True,
        lazy_init: bool = False,
        **unknown,
    ):
        if unknown:
            known = [name for name in inspect.signature(ObjectDataset).parameters if name != 'unknown']
            raise ConfigError(
                f'ObjectDataset has no option {", ".join(map(repr, unknown))}; its options are {", ".join(known)}.'
            )
        if not 0 < data_fraction <= 1:
            raise ConfigError(f'data_fraction must be above 0 and at most 1, got {data_fraction}.')
        if not 0 <= max_bad_share < 1:
            raise ConfigError(f'max_bad_share must be 0 or more and below 1, got {max_bad_share}.')
        if not isinstance(seed, int) or seed < 0:
            raise ConfigError(f'seed must be an integer >= 0, got {seed!r}.')
        if not isinstance(data_prefix, dict):
            data_prefix = dict(img_path=os.fspath(data_prefix))
        if set(data_prefix) != {'img_path'}:
            raise ConfigError(f'data_prefix must be a folder or dict(img_path=folder), got {dict(data_prefix)}.')
        self.seed, self.data_fraction = seed, data_fraction
        self.with_masks, self.with_crowd, self.keep_empty = with_masks, with_crowd, keep_empty
        self.min_score = min_score
        self.counts = {}
        self.max_bad_share = max_bad_share
        self.draws: Optional[torch.Tensor] = (
            None  # int32 [images]: plain indices that were asked for; shared like the next one
        )
        self.bad: Optional[torch.Tensor] = None  # uint8 [images], 1: bad; memory that the loader's workers share
        super().__init__(
            ann_file=os.fspath(ann_file),
            data_root=os.fspath(data_root),
            data_prefix=data_prefix,
            # mmengine would look for the transforms in the default scope's registry, whichever that is
            pipeline=[TRANSFORMS.build(step) if isinstance(step, dict) else step for step in pipeline],
            metainfo=metainfo,
            indices=indices,
            serialize_data=serialize_data,
            lazy_init=lazy_init,
        )

    def __getitem__(self, index: int):
        place = int(index)
        if not 0 <= place < len(self):
            raise IndexError(f'there is no image {place} among {len(self)}.')
        told = seed_of(index)
        if told is None:
            told = int(self.draws[place]), ()
            self.draws[place] += 1
        return self.prepare_data(place, *told)

    def __iter__(self):
        return (self[index] for index in range(len(self)))

    def full_init(self) -> None:
        super().full_init()
        if self.draws is None:
            self.draws = torch.zeros(len(self), dtype=torch.int32).share_memory_()
        if self.max_bad_share and self.bad is None:
            self.bad = torch.zeros(len(self), dtype=torch.uint8).share_memory_()

    def get_cat_ids(self, idx: int) -> List[int]:
        """Labels of an image's objects, for ``ClassBalancedDataset``; an image without any is of the class -1."""
        return self.get_data_info(idx)['labels'].tolist() or [-1]

    def prepare_data(self, idx: int, epoch: int = 0, more: Tuple[int, ...] = ()):
        results = self.get_data_info(idx)
        results['epoch'], results['rng'] = epoch, np.random.default_rng((self.seed, epoch, idx, *more))
        if not self.max_bad_share:
            return self.pipeline(results)
        try:
            return self.pipeline(results)
        except BadImageError as error:
            return self._replaced(idx, epoch, more, error)

    def _replaced(self, idx: int, epoch: int, more: Tuple[int, ...], error: BadImageError):
        """The item of another image; which one depends on nothing but the draw and the files."""
        rng = np.random.default_rng((self.seed, epoch, idx, *more, 1))
        for other in rng.integers(len(self), size=REPLACEMENTS).tolist():
            self.bad[idx] = 1
            self.check_bad_share()
            idx, results = other, self.get_data_info(other)
            results['epoch'], results['rng'] = epoch, np.random.default_rng((self.seed, epoch, idx, *more, 1))
            try:
                return self.pipeline(results)
            except BadImageError as next_error:
                error = next_error
        raise BadImageError(f'{REPLACEMENTS + 1} images in a row are bad; the last one: {error}') from None

    def paths_of(self, ids: Sequence[int]) -> List[str]:
        """Paths of the images with these `img_id`s ('': none has it): a search through the whole set, for messages."""
        wanted = set(ids)  # plain numbers, as batches carry them
        infos = (self.get_data_info(i) for i in range(len(self)))
        paths = {int(info['img_id']): info['img_path'] for info in infos if int(info['img_id']) in wanted}
        return [paths.get(key, '') for key in ids]

    def bad_images(self) -> List[str]:
        """Paths of the bad images that were met so far, by the workers of this process."""
        return (
            []
            if self.bad is None
            else [self.get_data_info(i)['img_path'] for i in self.bad.nonzero().flatten().tolist()]
        )

    def check_bad_share(self) -> None:
        """Raises BadImageError with the list (its first 50) if more images are bad than `max_bad_share` allows."""
        count = 0 if self.bad is None else int(self.bad.sum())
        if count > self.max_bad_share * len(self):
            paths = self.bad_images()
            more = f' and {count - 50} more' if count > 50 else ''
            raise BadImageError(
                f'{count} of {len(self)} images are bad, above max_bad_share={self.max_bad_share:g}: {", ".join(paths[:50])}{more}; mend or '
                'remove them (tools/misc/verify_dataset.py checks a whole data set and writes a clean annotation file).'
            ) from None  # a worker's error reaches the user as one text

    def load_data_list(self) -> list:
        folder = self.data_prefix['img_path'] or '.'
        if not os.path.isdir(folder):
            raise MissingFileError(
                f'image folder {folder} does not exist; check data_root and data_prefix (the '
                'shipped configs take their roots from COCO_ROOT, IMAGENET_ROOT and ADE20K_ROOT).'
            )
        if self.ann_file and not os.path.isfile(self.ann_file):
            raise MissingFileError(
                f'annotation file {self.ann_file} does not exist; check data_root and ann_file '
                '(the shipped configs take their roots from COCO_ROOT, IMAGENET_ROOT and ADE20K_ROOT).'
            )
        if not self.ann_file:
            data = _without_objects(list_images(folder), '')
            print_log(f'{folder}: {len(data)} images without objects', logger='current')
        elif self.ann_file.lower().endswith('.json'):
            content = _read_json(self.ann_file)
            coco_style = 'images' in content or 'annotations' in content
            columns = (_coco_columns if coco_style else _box_columns)(content, self.ann_file)
            self._metainfo.setdefault('classes', columns['classes'])
            data, self.counts = _group(columns, folder, self.ann_file, self.with_masks, self.with_crowd, self.min_score)
            told = _told(self.counts)
            empty = sum(not len(info['bboxes']) for info in data)
            if not self.keep_empty:
                data = [info for info in data if len(info['bboxes'])]
            print_log(
                f'{self.ann_file}: {len(data)} images, {told}; {empty} images without objects '
                f'{"kept" if self.keep_empty else "left out"}',
                logger='current',
            )
            if not data:
                raise AnnotationError(
                    f'annotation file {self.ann_file} has no image with an object; set keep_empty=True to '
                    'use those without.'
                )
        else:
            data = _without_objects(_read_list(self.ann_file), folder)
            print_log(f'{self.ann_file}: {len(data)} images without objects', logger='current')
        if not os.path.isfile(data[0]['img_path']):
            raise MissingFileError(
                f'image {data[0]["img_path"]}, the first of {self.ann_file}, does not exist; check '
                'data_root and data_prefix.'
            )
        if self.data_fraction < 1:
            order = np.random.default_rng(self.seed).permutation(len(data))
            data = [data[i] for i in sorted(order[: max(1, round(self.data_fraction * len(data)))])]
        return data


def segmentation_to_mask(segm, height: int, width: int) -> np.ndarray:
    """A COCO segmentation (list of polygons, RLE with counts as list or string) as bool [height, width].

    Pixels are chosen as pycocotools does, so that areas and IoUs are those of the COCO evaluation.
    """
    from pycocotools import mask as coco_mask

    fault = _mask_fault(
        segm, height, width
    )  # of what it is handed, pycocotools believes everything, and reads or fills memory accordingly
    if fault:
        raise AnnotationError(fault)
    if isinstance(segm, dict):
        rle = coco_mask.frPyObjects(segm, height, width) if isinstance(segm['counts'], list) else segm
    else:
        rle = coco_mask.merge(coco_mask.frPyObjects(segm, height, width))
    try:
        return coco_mask.decode(rle).astype(bool)
    except ValueError as error:
        raise AnnotationError(f'an RLE mask can not be decoded ({error}); mend or remove it.') from None


def _mask_fault(segm, height: int, width: int) -> Optional[str]:
    """Why this is no segmentation of an image of this size; None if it is."""
    if isinstance(segm, dict):
        size, counts = segm.get('size'), segm.get('counts')
        if not isinstance(size, (list, tuple)) or list(size) != [height, width]:
            return (
                f'an RLE mask of size {size} does not fit an image of height {height} and width {width}; use the images that the masks '
                'were made on.'
            )
        if isinstance(counts, list):
            if not all(type(run) is int and run >= 0 for run in counts) or sum(counts) != height * width:
                return f'the counts of an RLE mask are not whole numbers that sum to {height} x {width} pixels; mend or remove it.'
            return None
        text = counts.decode('latin-1') if isinstance(counts, bytes) else counts
        if not isinstance(text, str) or not _RLE_TEXT.fullmatch(text):
            return "the counts of an RLE mask are neither a list nor text in COCO's code; mend or remove it."
        return None
    if (
        not isinstance(segm, list)
        or not segm
        or not all(isinstance(polygon, list) and len(polygon) >= 6 for polygon in segm)
    ):
        return 'a mask is neither an RLE nor a list of polygons of three points or more; mend or remove it.'
    try:
        points = np.array([x for polygon in segm for x in polygon], np.float64)
    except (ValueError, TypeError, OverflowError):
        points = np.full(1, np.nan)
    reach = 2 * max(height, width)
    if (
        points.ndim != 1 or any(len(polygon) % 2 for polygon in segm) or not (np.abs(points) <= reach).all()
    ):  # NaN is not, either
        return (
            f'a polygon is not a list of x, y, x, y, ... in pixels within or near an image of height {height} and width {width}; mend '
            'or remove it.'
        )
    return None


def list_images(folder: str) -> list:
    names = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        names += [
            os.path.join(place, name)
            for name in sorted(files)
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith('.')
        ]
    if not names:
        raise ConfigError(
            f'no image in or below {folder} (looked for {", ".join(IMAGE_SUFFIXES)}); check data_root and data_prefix.'
        )
    return names


def _read_list(path: str) -> list:
    try:
        names = [line.strip() for line in Path(path).read_text().splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise AnnotationError(
            f'list {path} is no text; ann_file must be a .json, or a text file with one image path a line.'
        ) from None
    if not names:
        raise AnnotationError(
            f'list {path} is empty; write one image path a line, or leave ann_file out to use the whole folder.'
        )
    return names


def _without_objects(names: list, folder: str) -> list:
    return [
        dict(
            img_path=os.path.join(folder, name),
            img_id=i,
            height=None,
            width=None,
            masks=None,
            bboxes=np.zeros((0, 4), np.float32),
            labels=np.zeros(0, np.int64),
            scores=np.zeros(0, np.float32),
        )
        for i, name in enumerate(names)
    ]


def _read_json(path: str) -> dict:
    try:
        content = json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f'annotation file {path} is not valid JSON ({error}); is it complete?') from None
    if not isinstance(content, dict):
        raise AnnotationError(
            f'annotation file {path} holds a {type(content).__name__}; it must be COCO-style (a dict with '
            'images and annotations) or a dict {image path: [[x1, y1, x2, y2], ...]}.'
        )
    return content


def _coco_columns(content: dict, path: str) -> dict:
    """The file as columns: an entry per image (names, ids, sizes), one per annotation (owner: number of its image)."""
    images, annotations = content.get('images'), content.get('annotations')
    for what, found, advice in (
        ('images', images, 'is it complete?'),
        ('annotations', annotations, 'leave ann_file out to train on images without objects.'),
    ):
        if not isinstance(found, list) or not found:
            raise AnnotationError(f'annotation file {path} has no {what}; {advice}')
    try:
        names = [image['file_name'] for image in images]
        ids = [image['id'] for image in images]
        sizes = [(image.get('height') or np.inf, image.get('width') or np.inf) for image in images]
        sizes = np.array(sizes, np.float64)
        place = {key: i for i, key in enumerate(ids)}
        if not all(isinstance(name, str) for name in names) or not (sizes >= 1).all():
            raise ValueError
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        bad = next((i for i, image in enumerate(images) if not _is_image(image)), '?')
        raise AnnotationError(
            f'annotation file {path}: images[{bad}] is not a dict with an id, a file_name, and positive '
            'height and width; mend or remove it.'
        ) from None
    if len(place) < len(ids):
        raise AnnotationError(
            f'annotation file {path} has two images of one id ({_first_twice(ids)}); give each image its own.'
        )
    try:
        boxes = np.array([ann['bbox'] for ann in annotations], np.float64)
        owner = np.array([place.get(ann['image_id'], -1) for ann in annotations], np.int64)
        crowd = np.array([bool(ann.get('iscrowd') or ann.get('ignore')) for ann in annotations])
        kinds = [ann.get('category_id') for ann in annotations]
        known = {category['id']: category.get('name') for category in content.get('categories') or ()}
        number = {key: i for i, key in enumerate(sorted(known))}
        labels = np.array([number.get(kind, -1) for kind in kinds], np.int64)
        scores = [ann.get('score') for ann in annotations]
        scores = np.array([1.0 if score is None else score for score in scores], np.float32)
        if boxes.shape != (len(annotations), 4):
            raise ValueError
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        bad = next((i for i, ann in enumerate(annotations) if not _is_annotation(ann)), None)
        what = (
            'categories is not a list of dicts with an id and a name'
            if bad is None
            else (f'annotations[{bad}] is not a dict with an image_id, a category_id and a bbox [x, y, width, height]')
        )
        raise AnnotationError(f'annotation file {path}: {what}; mend or remove it.') from None
    boxes[:, 2:] += boxes[:, :2]
    return dict(
        names=names,
        ids=ids,
        sizes=sizes,
        owner=owner,
        boxes=boxes,
        crowd=crowd,
        labels=labels,
        scores=scores,
        masks=[ann.get('segmentation') for ann in annotations],
        classes=tuple(map(known.get, sorted(known))),
    )


def _box_columns(content: dict, path: str) -> dict:
    if not content:
        raise AnnotationError(
            f'annotation file {path} is empty; leave ann_file out to train on images without objects.'
        )
    try:
        boxes = np.array([box for found in content.values() for box in found], np.float64).reshape(-1, 4)
        owner = np.repeat(np.arange(len(content)), [len(found) for found in content.values()])
        if len(owner) != len(boxes):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        bad = next(
            (
                name
                for name, found in content.items()
                if not isinstance(found, list) or not all(_is_box(box) for box in found)
            ),
            '',
        )
        raise AnnotationError(
            f'annotation file {path}: the entry of {bad!r} is not a list of boxes [x1, y1, x2, y2]; mend '
            'or remove it (a COCO-style file would have images and annotations).'
        ) from None
    return dict(
        names=list(content),
        ids=list(range(len(content))),
        sizes=np.full((len(content), 2), np.inf),
        owner=owner,
        boxes=boxes,
        crowd=np.zeros(len(boxes), bool),
        labels=np.full(len(boxes), -1),
        scores=np.ones(len(boxes), np.float32),
        masks=None,
        classes=(),
    )


def _is_box(box) -> bool:
    return isinstance(box, list) and len(box) == 4 and all(isinstance(x, (int, float)) and abs(x) < 1e9 for x in box)


def _is_image(image) -> bool:
    if not isinstance(image, dict):
        return False
    sides = [image[side] for side in ('height', 'width') if image.get(side) is not None]
    return (
        isinstance(image.get('file_name'), str)
        and isinstance(image.get('id'), (int, str))
        and all(isinstance(side, int) and 1 <= side < 1e9 for side in sides)
    )


def _is_annotation(ann) -> bool:
    return (
        isinstance(ann, dict)
        and _is_box(ann.get('bbox'))
        and isinstance(ann.get('image_id'), (int, str))
        and isinstance(ann.get('category_id', 0), (int, str))
        and isinstance(ann.get('score'), (int, float, type(None)))
    )


def _first_twice(ids: list):
    seen = set()
    return next(key for key in ids if key in seen or seen.add(key))


def _told(counts: dict) -> str:
    return ', '.join(f'{count} {what}' for what, count in counts.items() if count) or 'no objects'


def _usable_mask(segm):
    """The segmentation without what is no polygon, None if nothing is left."""
    if isinstance(segm, dict) and 'counts' in segm and 'size' in segm:
        return segm
    if isinstance(segm, list):
        polygons = [polygon for polygon in segm if isinstance(polygon, list) and len(polygon) >= 6]
        return polygons or None
    return None


def _group(columns: dict, folder: str, path: str, with_masks: bool, with_crowd: bool, min_score: Optional[float]):
    """Cleans the boxes and hands them to their images. Returns (data list, counts by what was found)."""
    boxes, owner, crowd, sizes = columns['boxes'], columns['owner'], columns['crowd'], columns['sizes']
    with np.errstate(invalid='ignore'):
        clipped = clip_boxes(boxes, *sizes[owner].T)
        moved = (np.abs(clipped - boxes) > 1).any(1)
        found = {  # in the order of precedence: each annotation is counted once
            'annotations of unknown images dropped': owner < 0,
            'crowd regions left out': crowd & (not with_crowd),
            'degenerate or inverted boxes dropped': ~has_extent(boxes),
            'boxes outside their image dropped': ~has_extent(clipped),
        }
        if min_score is not None:
            found[f'objects below min_score={min_score:g} left out'] = columns['scores'] < min_score
    good, counts = np.ones(len(boxes), bool), {}
    for what, bad in found.items():
        counts[what] = int((bad & good).sum())
        good &= ~bad
    keep = np.flatnonzero(good)
    counts = {'objects': len(keep), **counts, 'boxes clipped to their image': int((moved & good).sum())}
    if len(boxes) and not len(keep):
        raise AnnotationError(
            f'annotation file {path} has no usable object ({_told(counts)}); boxes are [x, y, width, '
            'height] in COCO-style files, [x1, y1, x2, y2] in a dict of boxes.'
        )
    keep = keep[np.argsort(owner[keep], kind='stable')]
    bounds = np.searchsorted(owner[keep], np.arange(len(columns['names']) + 1)).tolist()
    boxes, labels, scores = clipped[keep].astype(np.float32), columns['labels'][keep], columns['scores'][keep]
    masks = None
    if with_masks and columns['masks'] is not None and any(columns['masks']):
        masks = [_usable_mask(columns['masks'][i]) for i in keep.tolist()]
        bare = [i for i, mask in enumerate(masks) if mask is None]
        counts['objects without a mask, taken as their box'] = len(bare)
        for i, (x1, y1, x2, y2) in zip(bare, boxes[bare].tolist()):
            masks[i] = [[x1, y1, x2, y1, x2, y2, x1, y2]]
    data = []
    for i, (name, key, (height, width)) in enumerate(zip(columns['names'], columns['ids'], sizes.tolist())):
        part = slice(bounds[i], bounds[i + 1])
        known = height < np.inf and width < np.inf
        data.append(
            dict(
                img_path=os.path.join(folder, name),
                img_id=key if isinstance(key, int) and abs(key) < 1 << 63 else i,
                height=int(height) if known else None,
                width=int(width) if known else None,
                bboxes=boxes[part],
                labels=labels[part],
                scores=scores[part],
                masks=None if masks is None else masks[part],
            )
        )
    return data, counts
