"""Readers of other tools' annotations, and what tells their formats apart.

Boxes of YOLO, Pascal VOC, LabelMe, CVAT and OpenImages are parsed by `globox <https://github.com/laclouis5/globox>`_;
what it has no reader for (polygons and masks beside the boxes, Label Studio, SA-1B) is here.
"""

import csv
import json
import math
import os
import re
import urllib.parse
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import numpy as np
import yaml

from ..datasets.values import flag, identity, is_crowd, number, numbers, side
from ..utils.errors import AnnotationError
from ..utils.paths import walk_files
from .labelled import Annotated, ImageIndex, Labelled, Size

_NO_LABELS = {'classes.txt', 'labels.txt', 'train.txt', 'val.txt', 'valid.txt', 'test.txt', 'notes.txt'}
_NAME_FILES = ('classes.txt', 'obj.names', '_darknet.labels', 'labels.txt')
_WRONG = (AssertionError, ArithmeticError, KeyError, TypeError, ValueError, AttributeError, IndexError, OSError)


_MOST_CLASSES = 100_000  # of YOLO; each number below the highest one gets a name


class UnrecognisedError(AnnotationError):
    """There are no annotations, or none of a format that is known."""


def recognise(path: Path, index: Optional[ImageIndex] = None) -> str:
    """Return the key of :data:`FORMATS` that a file or folder is of.

    Raises:
        AnnotationError: of none (``UnrecognisedError``), or of several.
    """
    if path.is_file():
        kinds = {_kind_of(path)} - {None}
    else:
        kinds = set()
        for suffix in ('.json', '.xml', '.csv'):
            kinds |= {_kind_of(file) for file in _files(path, suffix)[:50]} - {None}
        if not kinds and _yolo_files(path, index):
            kinds = {'yolo'}
    if len(kinds) == 1:
        return kinds.pop()
    formats = f'name the format (one of {", ".join(FORMATS)}).'
    if not kinds:
        raise UnrecognisedError(f'{path} holds no annotations that are recognised: {formats}')
    raise AnnotationError(f'{path} holds {" and ".join(sorted(kinds))} annotations: {formats}')


def _kind_of(path: Path) -> Optional[str]:
    suffix = path.suffix.lower()
    try:
        if suffix == '.json':
            content = _json(path)
            if isinstance(content, list):
                return 'labelstudio' if content and isinstance(content[0], dict) and _is_task(content[0]) else None
            for keys, kind in (
                ({'images', 'annotations'}, 'coco'),
                ({'image', 'annotations'}, 'sa1b'),
                ({'shapes', 'imagePath'}, 'labelme'),
            ):
                if keys <= set(content):
                    return kind
        elif suffix == '.xml':
            return {'annotations': 'cvat', 'annotation': 'voc'}.get(_xml(path).tag)
        elif suffix == '.csv':
            return (
                'openimages'
                if {'ImageID', 'XMin'} <= set(path.read_text('utf-8-sig')[:400].split('\n')[0].strip().split(','))
                else None
            )
        elif suffix in ('.yaml', '.yml'):
            return 'yolo'
    except (AnnotationError, TypeError, UnicodeDecodeError):
        return None
    return None


def _json(path: Path):
    try:
        return json.loads(path.read_bytes())
    except (ValueError, OSError, RecursionError) as error:
        raise AnnotationError(f'{path} is not valid JSON ({error})') from error


def _xml(path: Path) -> ElementTree.Element:
    try:
        return ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, OSError, ValueError) as error:
        raise AnnotationError(f'{path} is not valid XML ({error})') from error


def _files(path: Path, suffix: str) -> List[Path]:
    """The file itself, or those below a folder where images are looked for, too: not what runs wrote there."""
    if path.is_file():
        return [path]
    return sorted(Path(name) for name in walk_files(path, []) if name.lower().endswith(suffix) and os.path.isfile(name))


def _each(
    files: Sequence[Path], read: Callable[[Path], Iterator[Labelled]], faults: List[str]
) -> List[Tuple[Path, Labelled]]:
    """What ``read`` finds in each file; a file that it cannot read is a fault."""
    from globox.errors import ParsingError

    found = []
    for file in files:
        try:
            found += [(file, record) for record in read(file)]
        except AnnotationError as error:
            faults.append(str(error))
        except (ParsingError, *_WRONG) as error:
            faults.append(f'{file} cannot be read ({type(error).__name__}: {error})')
    return found


def _coco(path: Path, index: ImageIndex, faults: List[str]):
    names: Dict[str, str] = {}

    def read(file: Path) -> Iterator[Labelled]:
        content = _json(file)
        if not isinstance(content, dict) or not {'images', 'annotations'} <= set(content):
            return
        kinds = {identity(category['id']): str(category['name']) for category in content.get('categories') or ()}
        names.update((name, name) for name in kinds.values())
        objects: Dict[object, List[Annotated]] = {identity(image['id']): [] for image in content['images']}
        for i, annotation in enumerate(content['annotations']):
            try:
                kind = annotation.get('category_id')
                entry = Annotated(
                    kinds.get(None if kind is None else identity(kind), 'object'),
                    _from_xywh(annotation['bbox']),
                    annotation.get('segmentation') or None,
                    _number(annotation.get('score')),
                    is_crowd(annotation),
                    _number(annotation.get('area')),
                )
                objects[identity(annotation['image_id'])].append(entry)
            except _WRONG as error:
                faults.append(f'{file}: annotations[{i}] cannot be read ({type(error).__name__}: {error})')
        for image in content['images']:
            yield Labelled(image['file_name'], objects[identity(image['id'])], _size(image, 'height', 'width'))

    return _each(_files(path, '.json'), read, faults), list(names)


def _from_xywh(box: Sequence) -> Tuple[float, float, float, float]:
    x, y, w, h = (number(value) for value in box)
    return x, y, x + w, y + h


def _number(value: Any) -> Optional[float]:
    return None if value is None or value == '' else number(value)


def _size(holder: Mapping, height: str, width: str) -> Optional[Size]:
    """Height and width as a file says them; None if it does not say both."""
    found = side(holder.get(height)), side(holder.get(width))
    return None if None in found else found


def _voc(path: Path, index: ImageIndex, faults: List[str]):
    from globox import BoundingBox

    def read(file: Path) -> Iterator[Labelled]:
        root = _xml(file)
        if root.tag != 'annotation':
            return
        size = _size({name: root.findtext(f'size/{name}') for name in ('width', 'height')}, 'height', 'width')
        objects = []
        for node in root.iter('object'):
            box = BoundingBox.from_xml(node)
            hard = flag(node.findtext('difficult') or 0)  # VOC's evaluation leaves these out
            objects.append(Annotated(box.label, box.ltrb, crowd=hard))
        name = root.findtext('filename') or file.stem
        # renamed copies keep the old name inside: the file's own name is the better witness where there is an image of
        # it
        yield Labelled(file.stem if file.stem in index.by_stem else name, objects, size)

    return _each(_files(path, '.xml'), read, faults), []


def _yolo_files(path: Path, index: Optional[ImageIndex]) -> List[Path]:
    """Those of images that there are.

    Raises:
        AnnotationError: there are labels, and images, but of other ones.
    """
    found = [file for file in _files(path, '.txt') if file.name not in _NO_LABELS]
    kept = [file for file in found if index is None or file.stem in index.by_stem]
    labels = [] if kept or not index or not index.by_stem else [file for file in found[:50] if _is_yolo(file)]
    if labels:
        folders = list(dict.fromkeys(str(file.parent) for file in labels))
        stem, (image, *_) = next(iter(index.by_stem.items()))
        raise AnnotationError(
            f'none of the YOLO label files in {", ".join(folders[:3])}{", ..." if len(folders) > 3 else ""} '
            f'({labels[0].name}, ...) is of an image in or below {index.folder}: that of {image} would be {stem}.txt, '
            'in any folder; these are probably labels of other images: name those of these images, or the folder of '
            'their images.'
        )
    return kept


def _is_yolo(file: Path) -> bool:
    """Whether the first line is a class and shares of an image, as no other text is."""
    try:
        with open(file, encoding='utf-8-sig') as stream:
            kind, *rest = stream.readline().split()
        return kind.isdecimal() and len(rest) >= 4 and all(0 <= float(value) <= 1 for value in rest[:4])
    except (ValueError, OSError):
        return False


def _yolo(path: Path, index: ImageIndex, faults: List[str]):
    from globox import BoundingBox

    folder = path.parent if path.is_file() else path
    files = _yolo_files(folder, index)
    names, key_points = _yolo_names(path, files)
    rows: List[List[str]] = []  # as long as all are equally long

    def read(file: Path) -> Iterator[Labelled]:
        name = index.find(file.stem, file)
        height, width = index.size(name)
        objects = []
        for n, line in enumerate(file.read_text('utf-8-sig').splitlines(), 1):
            values = line.split()
            if not values:
                continue
            if len(values) < 5:
                raise AnnotationError(
                    f'{file}: line {n} has {len(values)} values, a box has five (class, x, y, width, height): fix it'
                )
            if max(abs(float(value)) for value in values[1:5]) > 2:
                raise AnnotationError(
                    f'{file}: line {n} has numbers of pixels, where YOLO has shares of the image (0 to 1): divide x '
                    'and width by its width, y and height by its height'
                )
            if len(rows) < 2 or len(rows[-1]) == len(rows[-2]):
                rows.append(values)
            segmentation = None
            if key_points:  # behind the box, two or three numbers each
                box = BoundingBox.from_yolo_v5(' '.join(values[:5]), image_size=(width, height))
            elif len(values) > 6:  # a polygon, or the corners of a turned box
                box = BoundingBox.from_yolo_seg(line, image_size=(width, height))
                points = np.array(values[1:], float).reshape(-1, 2) * (width, height)
                segmentation = [points.reshape(-1).tolist()]
            else:
                box = BoundingBox.from_yolo_v5(line, image_size=(width, height))
            if not 0 <= int(box.label) < _MOST_CLASSES:
                raise AnnotationError(
                    f'{file}: the class {box.label} is no number from 0 to {_MOST_CLASSES - 1} (line {n}): correct it'
                )
            objects.append(
                Annotated(int(box.label), box.ltrb, segmentation, box.confidence if box.is_detection else None)
            )
        yield Labelled(name, objects)

    found = _each(files, read, faults)
    shape = _key_points(rows) if key_points is None else None
    if shape:
        raise AnnotationError(
            f'{path}: all rows have {len(rows[0])} numbers, which look like boxes with key points (YOLO pose) and are '
            f'polygons otherwise: put a data.yaml with names into {folder}, with kpt_shape: {shape} for key points, '
            'without it for polygons.'
        )
    highest = max((entry.label for _, record in found for entry in record.objects), default=-1)
    names += [str(i) for i in range(len(names), highest + 1)]
    for _, record in found:
        for entry in record.objects:
            entry.label = names[entry.label]
    return found, names


def _key_points(rows: Sequence[Sequence[str]]) -> Optional[List[int]]:
    """The ``kpt_shape`` by which rows of one length are boxes with key points: each has a visibility of 0, 1 or 2, or,
    in ten rows and more, all lie in their box and that in the image; None: they are not."""
    try:
        values = np.array(rows, float)[:, 1:]
    except (IndexError, ValueError):  # none, of several lengths, or no numbers
        return None
    box, rest = values[:, :4], values[:, 4:]
    if rest.shape[1] >= 3 and rest.shape[1] % 3 == 0 and np.isin(rest[:, 2::3], (0, 1, 2)).all():
        return [rest.shape[1] // 3, 3]
    if rest.shape[1] < 2 or rest.shape[1] % 2 or len(rows) < 10:
        return None
    low, high = box[:, :2] - box[:, 2:] / 2 - 1e-3, box[:, :2] + box[:, 2:] / 2 + 1e-3
    points = rest.reshape(len(rows), -1, 2)
    held = (points >= low[:, None]) & (points <= high[:, None]) | (points == 0).all(2, keepdims=True)
    inside = held.all() and (low >= -2e-3).all() and (high <= 1 + 2e-3).all()
    return [points.shape[1], 2] if inside else None


def _yolo_names(path: Path, files: Sequence[Path]) -> Tuple[List[str], Optional[bool]]:
    """The names of the classes, by the nearest file that has them, and whether the nearest yaml with names says that
    objects have key points; None: there is none. ``files``: those of the labels."""
    folder = path.parent if path.is_file() else path
    names: List[str] = []
    yamls = yolo_yamls(path, files)
    for places in _near(folder, files):
        if yamls and (path.is_file() or yamls[0][0].parent in places):
            file, content = yamls[0]
            other = next((other for other, told in yamls if told['names'] != content['names']), None)
            if other and not names:
                raise AnnotationError(
                    f'{file} and {other} name other classes each: put the one of these labels into {folder}, and no '
                    'other.'
                )
            return names or _class_names(content['names'], file), bool(content.get('kpt_shape'))
        lists = {} if names else {tuple(told): place for place in places if (told := _listed(place))}
        if len(lists) > 1:
            first, second, *_ = lists.values()
            raise AnnotationError(
                f'{first} and {second} list other classes each ({", ".join(_NAME_FILES)}): put one list for all into '
                f'{folder}.'
            )
        names = names or list(next(iter(lists), ()))
    return names, None


def yolo_yamls(path: Path, files: Sequence[Path]) -> List[Tuple[Path, dict]]:
    """Return the nearest yamls of YOLO that name classes, with their contents: ``path`` itself, or those of one place,
    mostly one. ``files``: labels or images, which may lie in folders of ``path``."""
    for places in [[path]] if path.is_file() else _near(path, files):
        found = []
        for file in [path] if path.is_file() else [file for place in places for file in sorted(place.glob('*.y*ml'))]:
            try:
                content = yaml.safe_load(file.read_text('utf-8-sig'))
            except (yaml.YAMLError, ValueError) as error:  # of a date that is none, too
                raise AnnotationError(
                    f'{file} is not valid YAML ({type(error).__name__}); fix or remove it.'
                ) from error
            names = content.get('names') if isinstance(content, dict) else None
            if names or isinstance(names, list):
                found.append((file, content))
        if found:
            return found
    return []


def _near(folder: Path, files: Sequence[Path]) -> List[List[Path]]:
    """A data set's folder, those in it above the files, and the two above it, in groups that are equally near."""
    below = sorted({place for file in files for place in file.parents if folder in place.parents})
    return [[folder], below, [folder.parent], [folder.parent.parent]]


def _class_names(found: Any, file: Path) -> List[str]:
    """The names of a yaml: a list, or by their numbers, of which those left out are names themselves."""
    names: Dict[int, str] = {}
    entries = (
        found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else [('', found)]
    )
    for key, name in entries:
        number = str(key).strip()  # quoted ones are meant, too
        if not re.fullmatch('[0-9]{1,5}', number) or int(number) in names or not isinstance(name, (str, int, float)):
            where = f'names[{key!r}]' if isinstance(found, (dict, list)) else 'names'
            raise AnnotationError(
                f'{file}: {where} is {name!r:.60}; names must be a list of the classes, or give each number, once, '
                'a name (0: cat).'
            )
        names[int(number)] = str(name)
    return [names.get(i, str(i)) for i in range(max(names, default=-1) + 1)]


def read_lines(file: Path) -> List[str]:
    """Return the lines of a list of names.

    Raises:
        AnnotationError: it is no text in UTF-8.
    """
    try:
        return file.read_text('utf-8-sig').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise AnnotationError(f'{file} cannot be read as text in UTF-8 ({error}): save it as that.') from error


def _listed(place: Path) -> List[str]:
    """The names in the first file of a folder that lists some."""
    for file in (place / name for name in _NAME_FILES):
        lines = read_lines(file) if file.is_file() else []
        if names := [line.strip() for line in lines if line.strip()]:
            return names
    return []


def _polygon(points) -> Tuple[Tuple[float, ...], list]:
    """Box and segmentation of points [n, 2]; fewer than three give no segmentation."""
    points = np.asarray(points, float).reshape(-1, 2)
    return (*points.min(0), *points.max(0)), [points.reshape(-1).tolist()] if len(points) > 2 else None


def _both(first: Annotated, second: Annotated) -> Annotated:
    """Two parts of one object; without a mask if one of them has none."""
    box = *np.minimum(first.box[:2], second.box[:2]), *np.maximum(first.box[2:], second.box[2:])
    masks = [part.segmentation for part in (first, second)]
    return Annotated(first.label, box, sum(masks, []) if all(masks) else None)


def _labelme(path: Path, index: ImageIndex, faults: List[str]):
    from globox import BoundingBox

    def read(file: Path) -> Iterator[Labelled]:
        content = _json(file)
        if 'shapes' not in content:
            return
        objects: Dict[object, Annotated] = {}
        skipped = 0
        for i, shape in enumerate(content['shapes']):
            kind = shape.get('shape_type', 'polygon')
            if kind == 'circle':  # its middle and a point on it
                (cx, cy), (x, y) = numbers(shape['points'], 2).tolist()
                radius, turn = math.hypot(x - cx, y - cy), np.linspace(0, 2 * math.pi, 64, endpoint=False)
                box, segmentation = _polygon(np.stack([cx + radius * np.cos(turn), cy + radius * np.sin(turn)], 1))
                entry = Annotated(
                    str(shape['label']), (cx - radius, cy - radius, cx + radius, cy + radius), segmentation
                )
            elif kind in ('rectangle', 'polygon'):
                points = numbers(shape['points'], 2).tolist()
                segmentation = _polygon(points)[1] if kind == 'polygon' else None
                box = BoundingBox.from_labelme({**shape, 'points': points})
                entry = Annotated(box.label, box.ltrb, segmentation)
            else:
                skipped += 1
                continue
            group = shape.get('group_id')  # of the parts of one object, as LabelMe's own converters have it
            key = i if group is None else (entry.label, group)
            objects[key] = _both(objects[key], entry) if key in objects else entry
        if skipped:
            faults.append(f'{file}: {skipped} shapes that are no rectangle, polygon or circle')
        size = _size(content, 'imageHeight', 'imageWidth')
        yield Labelled(content.get('imagePath') or file.stem, list(objects.values()), size)

    return _each(_files(path, '.json'), read, faults), []


def _cvat(path: Path, index: ImageIndex, faults: List[str]):
    from globox import BoundingBox
    from pycocotools import mask as coco_mask

    def read(file: Path) -> Iterator[Labelled]:
        root = _xml(file)
        if root.tag != 'annotations':
            return
        if root.find('track') is not None:
            faults.append(f'{file}: tracks of a video (export as "CVAT for images")')
        skipped = 0
        for image in root.iter('image'):
            height, width = side(image.get('height')), side(image.get('width'))
            objects = []
            for node in image:
                if node.tag == 'box':
                    box = BoundingBox.from_cvat(node)
                    turned = float(node.get('rotation') or 0)
                    objects.append(
                        Annotated(box.label, box.ltrb) if not turned else _turned(box.label, box.ltrb, turned)
                    )
                elif node.tag == 'polygon':
                    points = [[float(v) for v in point.split(',')] for point in node.get('points').split(';')]
                    objects.append(Annotated(node.get('label'), *_polygon(points)))
                elif node.tag == 'mask':  # runs of 0 and 1 in turn, row by row inside its rectangle
                    left, top, w, h = (int(number(node.get(key))) for key in ('left', 'top', 'width', 'height'))
                    runs = [int(number(run)) for run in node.get('rle').split(',')]
                    if (
                        sum(runs) != w * h
                        or min(runs) < 0
                        or left < 0
                        or top < 0
                        or left + w > width
                        or top + h > height
                    ):
                        raise AnnotationError(f'{file}: a mask of image {image.get("name")} does not fit its rectangle')
                    mask = np.zeros((height, width), np.uint8)
                    mask[top : top + h, left : left + w] = np.repeat(np.arange(len(runs)) % 2, runs).reshape(h, w)
                    rle = coco_mask.encode(np.asfortranarray(mask))
                    rle['counts'] = rle['counts'].decode()
                    objects.append(Annotated(node.get('label'), (left, top, left + w, top + h), rle))
                elif node.tag != 'tag':  # of the whole image
                    skipped += 1
            yield Labelled(image.get('name'), objects, (height, width))
        if skipped:
            faults.append(f'{file}: {skipped} shapes that are no box, polygon or mask')

    return _each(_files(path, '.xml'), read, faults), []


def _turned(label: str, box: Sequence[float], degrees: float, corner: bool = False) -> Annotated:
    """A box turned clockwise about its middle, or about its top left corner, as a polygon."""
    x1, y1, x2, y2 = box
    points = np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], float)
    pivot = points[0] if corner else points.mean(0)
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return Annotated(label, *_polygon((points - pivot) @ np.array([[c, s], [-s, c]]) + pivot))


def _is_task(task: dict) -> bool:
    return ('data' in task and bool({'annotations', 'completions'} & set(task))) or (
        'image' in task and 'annotator' in task
    )


def _label_of(region: dict) -> str:
    return next((str(v[0]) for k, v in region.items() if k.endswith('labels') and v), '')


def _joined(regions: Sequence[dict]) -> List[dict]:
    """One entry for each region: Label Studio repeats the shape with its label and with each answer to a question."""
    found: Dict[str, dict] = {}
    for i, region in enumerate(regions):
        shape = [region.get(key) for key in ('x', 'y', 'width', 'height', 'points')]
        key = json.dumps(shape) if any(value is not None for value in shape) else str(i)
        if key in found and _label_of(found[key]) and _label_of(region):  # two objects of one shape
            key = str(i)
        found.setdefault(key, {}).update(region)
    return list(found.values())


def _image_of(address: str, index: ImageIndex) -> str:
    """The image that an address means: an uploaded file, whose prefix is Label Studio's own, one of a local folder, or
    one of a store, whose names are not quoted."""
    try:
        parts = urllib.parse.urlparse(address)
    except ValueError:  # another text
        return address
    query = urllib.parse.parse_qs(parts.query)
    path = query['d'][0] if 'd' in query else urllib.parse.unquote(parts.path)
    plain = re.sub(r'^[0-9a-f]{8}-', '', _name(path))
    known = (name for name in (path, address.partition('://')[2]) if _name(name) in index.by_name)
    return next(known, plain)


def _name(path: str) -> str:
    return path.rsplit('/', 1)[-1]


def _labelstudio(path: Path, index: ImageIndex, faults: List[str]):
    def read(file: Path) -> Iterator[Labelled]:
        content, unfinished = _json(file), 0
        for task in content if isinstance(content, list) else [content]:
            if not isinstance(task, dict):
                continue
            if 'data' in task:  # the full export
                told = [_image_of(v, index) for v in task['data'].values() if isinstance(v, str)]  # texts and ids, too
                image = next((name for name in told if _name(name) in index.by_name), told[0] if told else '')
                done = [
                    a for a in task.get('annotations') or task.get('completions') or () if not a.get('was_cancelled')
                ]
                done.sort(
                    key=lambda a: not a.get('ground_truth')
                )  # several annotators: the ground truth, else the first
                if not done:  # skipped, or not looked at yet: it is not known to show no object
                    unfinished += 1
                    continue
                regions = [
                    dict(r.get('value', {}), **{k: r.get(k) for k in ('original_width', 'original_height')})
                    for r in done[0]['result']
                ]
            else:  # JSON-MIN
                lists = [v for v in task.values() if isinstance(v, list)]  # one for each tool that drew
                regions = [region for v in lists for region in v if isinstance(region, dict)]
                image = _image_of(task['image'], index)
            objects, size, skipped = [], None, 0
            for region in _joined(regions):
                original = _size(region, 'original_height', 'original_width')
                label = _label_of(region) or 'object'
                if original is None:
                    skipped += 1
                    continue
                size = original
                scale = np.array(size[::-1]) / 100
                if 'points' in region:
                    objects.append(Annotated(label, *_polygon(numbers(region['points'], 2) * scale)))
                elif {'x', 'y', 'width', 'height'} <= set(region):
                    corner, side = (
                        np.array([number(region['x']), number(region['y'])]) * scale,
                        np.array([number(region['width']), number(region['height'])]) * scale,
                    )
                    box = (*corner.tolist(), *(corner + side).tolist())
                    turned = float(region.get('rotation') or 0)
                    objects.append(_turned(label, box, turned, corner=True) if turned else Annotated(label, box))
                else:
                    skipped += 1
            if skipped:
                faults.append(f'{file}: {skipped} regions of {image} that are no rectangle or polygon')
            yield Labelled(image, objects, size)
        if unfinished:
            faults.append(f'{file}: {unfinished} tasks without an annotation, or with cancelled ones alone')

    return _each(_files(path, '.json'), read, faults), []


def _openimages(path: Path, index: ImageIndex, faults: List[str]):
    from globox import BoundingBox

    names = {}
    for file in sorted((path.parent if path.is_file() else path).glob('*class-descriptions*.csv')):
        with open(file, newline='', encoding='utf-8-sig') as stream:
            names.update({row[0]: row[1] for row in csv.reader(stream) if len(row) > 1})

    def read(file: Path) -> Iterator[Labelled]:
        if _kind_of(file) != 'openimages':
            return
        objects: Dict[str, List[Annotated]] = {}
        sizes: Dict[str, Optional[Size]] = {}
        with open(file, newline='', encoding='utf-8-sig') as stream:
            for row in csv.DictReader(stream):
                key = row['ImageID']
                if key not in sizes:
                    try:
                        sizes[key] = index.size(index.find(key, file))
                    except AnnotationError as error:  # a part of OpenImages is what people have: its file lists all
                        faults.append(str(error))
                        sizes[key] = None
                if sizes[key] is None:
                    continue
                box = BoundingBox.create(
                    label=names.get(row['LabelName'], row['LabelName']),
                    coords=tuple(number(row[end]) for end in ('XMin', 'YMin', 'XMax', 'YMax')),
                    relative=True,
                    image_size=sizes[key][::-1],
                )
                group = row.get('IsGroupOf') or ''
                crowd = not group.strip().startswith('-') and flag(group)  # -1: unknown
                objects.setdefault(key, []).append(Annotated(box.label, box.ltrb, crowd=crowd))
        for key, entries in objects.items():
            yield Labelled(key, entries)

    return _each(_files(path, '.csv'), read, faults), []


def _sa1b(path: Path, index: ImageIndex, faults: List[str]):
    def read(file: Path) -> Iterator[Labelled]:
        content = _json(file)
        if 'image' not in content:
            return
        image, objects = content['image'], []
        for entry in content['annotations']:
            objects.append(
                Annotated(
                    'object',
                    _from_xywh(entry['bbox']),
                    entry.get('segmentation'),
                    _number(entry.get('predicted_iou')),
                    area=_number(entry.get('area')),
                )
            )
        yield Labelled(image['file_name'], objects, _size(image, 'height', 'width'))

    return _each(_files(path, '.json'), read, faults), []


FORMATS: Dict[str, Callable] = dict(
    coco=_coco,
    voc=_voc,
    yolo=_yolo,
    labelme=_labelme,
    cvat=_cvat,
    labelstudio=_labelstudio,
    openimages=_openimages,
    sa1b=_sa1b,
)
"""Readers of other tools' annotations, by the name of the format."""
