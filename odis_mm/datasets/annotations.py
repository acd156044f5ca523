"""Annotation files as columns: read once, checked, and kept in a cache that all ranks and later runs map into
memory."""

import gc
import hashlib
import json
import os
import tempfile
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional

import numpy as np

from ..utils.errors import AnnotationError, FileWriteError
from ..utils.files import PathLike, atomic_write, locked
from .columns import Columns, Masks, Texts, give_memory_back
from .files import read_json, shown
from .image_io import clip_boxes, has_extent
from .values import flag, identities, identity, number, numbers, side

VERSION = 2  # of the cache; raise it with every change of what is kept
CACHE_FROM = 4 << 20  # bytes of an annotation file from which a cache is worth its place
_MAGIC = b'odis_mm columns\n'
_BAD = (KeyError, TypeError, ValueError, AttributeError, OverflowError)


def read_annotations(
    path: PathLike, with_masks: bool = True, with_crowd: bool = False, min_score: Optional[float] = None
) -> Columns:
    """Return the images and objects of a json, COCO-style or a dict of boxes.

    A large file is read once: what comes of it is kept in ``cache_folder()``, and mapped from there as long as the file
    has the same size, time and content. A cache that is damaged, or of another file, is written anew.
    ``ODIS_MM_CACHE=`` (empty) in the environment keeps none.

    Args:
        path: The json.
        with_masks: Keep the segmentations.
        with_crowd: Keep regions of many objects.
        min_score: Leave out objects with a lower ``score``.

    Raises:
        AnnotationError: it cannot be understood, or holds nothing to use.
    """
    options = dict(with_masks=with_masks, with_crowd=with_crowd, min_score=min_score)
    folder = cache_folder()
    if folder is None or os.path.getsize(path) < CACHE_FROM:
        return parse_annotations(path, **options)
    key = json.dumps([os.path.abspath(path), options, VERSION]).encode('utf-8', 'surrogatepass')
    place = folder / f'{hashlib.blake2b(key, digest_size=12).hexdigest()}.columns'
    source = source_of(path)
    found = _load(place, source)
    if found is not None:
        return found
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(place.with_suffix('.lock'), 'waiting for the process that reads the annotations'):
            found = _load(place, source)  # by another rank, meanwhile
            if found is None:
                _save(parse_annotations(path, **options), place, source)
                give_memory_back()
                found = _load(place, source)
    except (OSError, FileWriteError):  # a full disk, or no permission: a cache is a convenience
        found = None
    return found if found is not None else parse_annotations(path, **options)


def cache_folder() -> Optional[Path]:
    """Return where caches are kept: ``$ODIS_MM_CACHE``, ``$XDG_CACHE_HOME/odis_mm`` or ``~/.cache/odis_mm``; None if it
    is empty."""
    named = os.environ.get('ODIS_MM_CACHE')
    if named is not None:
        return Path(named) if named else None
    root = os.environ.get('XDG_CACHE_HOME')
    try:
        return Path(root) / 'odis_mm' if root else Path.home() / '.cache' / 'odis_mm'
    except RuntimeError:  # a user without a home
        return Path(tempfile.gettempdir()) / f'odis_mm_{os.getuid() if hasattr(os, "getuid") else "cache"}'


def source_of(path: PathLike) -> Dict[str, Any]:
    """Return what tells one state of a file from another: its size, time and a hash of its content."""
    told = os.stat(path)
    digest = hashlib.blake2b(digest_size=16)
    with open(path, 'rb') as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
    return dict(size=told.st_size, mtime=told.st_mtime_ns, content=digest.hexdigest())


def _save(columns: Columns, place: Path, source: Dict[str, Any]) -> None:
    arrays, entries, at, check = columns.arrays(), {}, 0, 0
    for name, values in arrays.items():
        values = arrays[name] = np.ascontiguousarray(values)
        entries[name] = dict(dtype=values.dtype.str, shape=values.shape, at=at)
        check = zlib.crc32(values.reshape(-1).view(np.uint8), check)
        at += -(-values.nbytes // 64) * 64
    header = dict(source=source, arrays=entries, check=check, classes=list(columns.classes), counts=columns.counts)
    text = json.dumps(header).encode()

    def write(file: Any) -> None:
        file.write(_MAGIC + len(text).to_bytes(8, 'little') + text)
        file.write(b'\0' * (-file.tell() % 64))
        for values in arrays.values():
            file.write(values.reshape(-1).view(np.uint8))
            file.write(b'\0' * (-values.nbytes % 64))

    atomic_write(place, write)


def _load(place: Path, source: Dict[str, Any]) -> Optional[Columns]:
    """The columns of a cache; None if it is not there, damaged, or of another state of the file."""
    try:
        whole = np.memmap(place, np.uint8, 'r')
        start = len(_MAGIC)
        if whole[:start].tobytes() != _MAGIC:
            return None
        length = int.from_bytes(whole[start : start + 8].tobytes(), 'little')
        header = json.loads(whole[start + 8 : start + 8 + length].tobytes())
        if header['source'] != source:
            return None
        base = -(-(start + 8 + length) // 64) * 64
        arrays, check = {}, 0
        for name, entry in header['arrays'].items():
            dtype, shape = np.dtype(entry['dtype']), tuple(entry['shape'])
            first = base + entry['at']
            values = whole[first : first + dtype.itemsize * int(np.prod(shape))]
            check = zlib.crc32(values, check)
            arrays[name] = np.asarray(values).view(dtype).reshape(shape)
        if check != header['check']:
            return None
        columns = Columns.from_arrays(arrays, header['classes'], header['counts'])
        columns.origin = _mapped, (place, source)
        return columns
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _mapped(place: Path, source: Dict[str, Any]) -> Columns:
    """What another process of this run has mapped."""
    found = _load(place, source)
    if found is None:
        raise AnnotationError(
            f'the cache of annotations {shown(place)} has gone while the run started: start it again.'
        )
    return found


@contextmanager
def _without_collection() -> Iterator[None]:
    """Of the millions of dicts of a large file none is garbage, and looking for some takes a third of the time."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()


def parse_annotations(
    path: PathLike, with_masks: bool = True, with_crowd: bool = False, min_score: Optional[float] = None
) -> Columns:
    """Return what :func:`read_annotations` does, without a cache."""
    with _without_collection():
        content = read_json(path)
        read = coco_table if 'images' in content or 'annotations' in content else _box_table
        table = read(content, path)
        del content  # of its dicts only what the table refers to is kept
        return _group(table, path, with_masks, with_crowd, min_score)


def coco_table(content: dict, path: PathLike) -> dict:
    """Return a COCO-style file as columns: an entry per image (names, ids, sizes), one per annotation (owner: number of
    its image).

    Raises:
        AnnotationError: an image, annotation or category is not understood; the message names the first.
    """
    path = shown(path)
    images, annotations = content.get('images'), content.get('annotations')
    for what, found, advice in (
        ('images', images, 'is it complete?'),
        ('annotations', annotations, 'leave ann_file out to train on images without objects.'),
    ):
        if not isinstance(found, list) or not found:
            raise AnnotationError(f'annotation file {path} has no {what}; {advice}')
    try:
        names = [image['file_name'] for image in images]
        ids = identities([image['id'] for image in images])
        sizes = _sizes(images)
        place = {key: i for i, key in enumerate(ids)}
        if not all(isinstance(name, str) for name in names):
            raise ValueError
    except _BAD:
        bad = next((i for i, image in enumerate(images) if not _is_image(image)), '?')
        raise AnnotationError(
            f'annotation file {path}: images[{bad}] is not a dict with an id, a file_name, and positive '
            'height and width; fix or remove it.'
        ) from None
    if len(place) < len(ids):
        raise AnnotationError(
            f'annotation file {path} has two images of one id ({_first_twice(ids)}); give each image its own.'
        )
    try:
        boxes = numbers([ann['bbox'] for ann in annotations], 4)
        owner = np.array([place.get(key, -1) for key in identities([ann['image_id'] for ann in annotations])], np.int64)
        crowd = _flags([ann.get('iscrowd') for ann in annotations]) | _flags([ann.get('ignore') for ann in annotations])
        known = {identity(category['id']): category.get('name') for category in content.get('categories') or ()}
        order = sorted(known, key=lambda key: (isinstance(key, str), key))
        place = {key: i for i, key in enumerate(order)}
        kinds = [ann.get('category_id') for ann in annotations]
        if set(map(type, kinds)) != {int}:
            kinds = [None if kind is None else identity(kind) for kind in kinds]
        labels = np.array([place.get(kind, -1) for kind in kinds], np.int64)
        scores = [ann.get('score') for ann in annotations]
        scores = np.array([1.0 if score is None else number(score) for score in scores], np.float32)
    except _BAD:
        bad = next((i for i, ann in enumerate(annotations) if not _is_annotation(ann)), None)
        what = (
            'categories is not a list of dicts with an id and a name'
            if bad is None
            else (f'annotations[{bad}] is not a dict with an image_id, a category_id and a bbox [x, y, width, height]')
        )
        raise AnnotationError(f'annotation file {path}: {what}; fix or remove it.') from None
    if len(known) < len(content.get('categories') or ()):
        twice = _first_twice([identity(category['id']) for category in content['categories']])
        raise AnnotationError(
            f'annotation file {path} has two categories of one id ({twice}); give each category its own.'
        )
    boxes[:, 2:] += boxes[:, :2]
    return dict(
        names=names,
        ids=[key if isinstance(key, int) and abs(key) < 1 << 63 else i for i, key in enumerate(ids)],
        sizes=sizes,
        owner=owner,
        boxes=boxes,
        crowd=crowd,
        labels=labels,
        scores=scores,
        masks=[ann.get('segmentation') for ann in annotations],
        classes=tuple(map(known.get, order)),
    )


def _sizes(images: List[dict]) -> np.ndarray:
    """float64 [n, 2], infinite where a side is not told."""
    told = [(image.get('height'), image.get('width')) for image in images]
    plain = {int}
    if all(type(h) in plain and type(w) in plain and 0 < h < 1e9 and 0 < w < 1e9 for h, w in told):
        return np.array(told, np.float64)
    return np.array([[side(value) or np.inf for value in pair] for pair in told], np.float64)


def _flags(values: List[Any]) -> np.ndarray:
    return np.array([value == 1 if type(value) is int and value in (0, 1) else flag(value) for value in values], bool)


def _box_table(content: dict, path: PathLike) -> dict:
    path = shown(path)
    if not content:
        raise AnnotationError(
            f'annotation file {path} is empty; leave ann_file out to train on images without objects.'
        )
    try:
        boxes = numbers([box for found in content.values() for box in found], 4)
        owner = np.repeat(np.arange(len(content)), [len(found) for found in content.values()])
        if len(owner) != len(boxes):
            raise ValueError
    except _BAD:
        bad = next(
            (
                name
                for name, found in content.items()
                if not isinstance(found, list) or not all(_is_box(box) for box in found)
            ),
            '',
        )
        raise AnnotationError(
            f'annotation file {path}: the entry of {bad!r} is not a list of boxes [x1, y1, x2, y2]; fix '
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


def _holds(check: Any, *values: Any) -> bool:
    try:
        for value in values:
            check(value)
    except _BAD:
        return False
    return True


def _is_box(box: Any) -> bool:
    return isinstance(box, list) and len(box) == 4 and _holds(number, *box) and all(abs(number(x)) < 1e9 for x in box)


def _is_image(image: Any) -> bool:
    return (
        isinstance(image, dict)
        and isinstance(image.get('file_name'), str)
        and _holds(identity, image.get('id'))
        and _holds(side, image.get('height'), image.get('width'))
    )


def _is_annotation(ann: Any) -> bool:
    return (
        isinstance(ann, dict)
        and _is_box(ann.get('bbox'))
        and _holds(identity, ann.get('image_id'))
        and (ann.get('category_id') is None or _holds(identity, ann['category_id']))
        and _holds(flag, ann.get('iscrowd'), ann.get('ignore'))
        and (ann.get('score') is None or _holds(number, ann['score']))
    )


def _first_twice(ids: list) -> Any:
    seen = set()
    return next(key for key in ids if key in seen or seen.add(key))


def told(counts: Dict[str, int]) -> str:
    """Return what was found in the annotations, in words."""
    return ', '.join(f'{count} {what}' for what, count in counts.items() if count) or 'no objects'


def _group(table: dict, path: PathLike, with_masks: bool, with_crowd: bool, min_score: Optional[float]) -> Columns:
    """Clean the boxes and hand them to their images."""
    boxes, owner, sizes = table['boxes'], table['owner'], table['sizes']
    with np.errstate(invalid='ignore'):
        clipped = clip_boxes(boxes, *sizes[owner].T)
        moved = (np.abs(clipped - boxes) > 1).any(1)
        found = {  # in the order of precedence: each annotation is counted once
            'annotations of unknown images dropped': owner < 0,
            'crowd regions left out': table['crowd'] & (not with_crowd),
            'degenerate or inverted boxes dropped': ~has_extent(boxes),
            'boxes outside their image dropped': ~has_extent(clipped),
        }
        if min_score is not None:
            found[f'objects below min_score={min_score:g} left out'] = table['scores'] < min_score
    good, counts = np.ones(len(boxes), bool), {}
    for what, bad in found.items():
        counts[what] = int((bad & good).sum())
        good &= ~bad
    keep = np.flatnonzero(good)
    counts = {'objects': len(keep), **counts, 'boxes clipped to their image': int((moved & good).sum())}
    if len(boxes) and not len(keep):
        raise AnnotationError(
            f'annotation file {shown(path)} has no usable object ({told(counts)}); boxes are [x, y, width, '
            'height] in COCO-style files, [x1, y1, x2, y2] in a dict of boxes.'
        )
    keep = keep[np.argsort(owner[keep], kind='stable')]
    masks = None
    if with_masks and table['masks'] is not None and any(table['masks']):
        masks, bare = Masks.of(table['masks'][i] for i in keep.tolist())
        counts['objects without a mask, taken as their box'] = bare
    known = np.isfinite(sizes).all(1)
    return Columns(
        names=Texts.of(table['names']),
        ids=np.array(table['ids'], np.int64),
        sizes=np.where(known[:, None], sizes, 0).astype(np.int64),
        first=np.searchsorted(owner[keep], np.arange(len(known) + 1)),
        boxes=clipped[keep].astype(np.float32),
        labels=table['labels'][keep].astype(np.int64),
        scores=table['scores'][keep],
        crowd=table['crowd'][keep],
        masks=masks,
        classes=table['classes'],
        counts=counts,
    )
