"""Readers of other tools' annotations, and what tells their formats apart.

Boxes of Pascal VOC, LabelMe, CVAT and OpenImages are parsed by `globox <https://github.com/laclouis5/globox>`_;
what it has no reader for (polygons and masks beside the boxes, Label Studio, SA-1B) is here.
"""

import csv
import json
import math
import re
import urllib.parse
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from ..datasets.values import flag, identity, is_crowd, number, numbers, side
from ..utils.errors import AnnotationError
from .labelled import Annotated, ImageIndex, Labelled, Size
from .parsing import WRONG, files_below, read_each
from .yolo import read_yolo, yolo_labels


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
            kinds |= {_kind_of(file) for file in files_below(path, suffix)[:50]} - {None}
        if not kinds and yolo_labels(path, index):
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


def _coco(path: Path, index: ImageIndex, faults: List[str]):
    names: Dict[str, str] = {}

    def read(file: Path) -> Iterator[Labelled]:
        content = _json(file)
        if not isinstance(content, dict) or not {'images', 'annotations'} <= set(content):
            return
        kinds = {identity(category['id']): str(category['name']) for category in content.get('categories') or ()}
        if len(kinds) < len(content.get('categories') or ()):
            raise AnnotationError(f'{file} has two categories of one id: give each category its own')
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
            except WRONG as error:
                faults.append(f'{file}: annotations[{i}] cannot be read ({type(error).__name__}: {error})')
        for image in content['images']:
            yield Labelled(image['file_name'], objects[identity(image['id'])], _size(image, 'height', 'width'))

    return read_each(files_below(path, '.json'), read, faults), list(names)


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

    return read_each(files_below(path, '.xml'), read, faults), []


def _polygon(points) -> Tuple[Tuple[float, ...], list]:
    """Box and segmentation of points [n, 2]; fewer than three give no segmentation."""
    points = np.asarray(points, float).reshape(-1, 2)
    return (*points.min(0), *points.max(0)), [points.reshape(-1).tolist()] if len(points) > 2 else None


def _both(first: Annotated, second: Annotated) -> Annotated:
    """Two parts of one object; without a mask if one of them has none."""
    box = *np.minimum(first.box[:2], second.box[:2]), *np.maximum(first.box[2:], second.box[2:])
    masks = [part.segmentation for part in (first, second)]
    return Annotated(first.label, box, sum(masks, []) if all(masks) else None)


def _alone(images: int) -> str:
    """What is told of images with no other shapes than those that are not read: they are not known to show nothing."""
    return f', the only ones of {int(images)} images, which are left out' if images else ''


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
            faults.append(f'{file}: {skipped} shapes that are no rectangle, polygon or circle{_alone(not objects)}')
        size = _size(content, 'imageHeight', 'imageWidth')
        if objects or not skipped:
            yield Labelled(content.get('imagePath') or file.stem, list(objects.values()), size)

    return read_each(files_below(path, '.json'), read, faults), []


def _cvat(path: Path, index: ImageIndex, faults: List[str]):
    from globox import BoundingBox
    from pycocotools import mask as coco_mask

    def read(file: Path) -> Iterator[Labelled]:
        root = _xml(file)
        if root.tag != 'annotations':
            return
        if root.find('track') is not None:
            faults.append(f'{file}: tracks of a video (export as "CVAT for images")')
        skipped = images = 0
        for image in root.iter('image'):
            height, width = side(image.get('height')), side(image.get('width'))
            objects, others = [], 0
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
                    others += 1
            skipped += others
            if objects or not others:
                yield Labelled(image.get('name'), objects, (height, width))
            else:
                images += 1
        if skipped:
            faults.append(f'{file}: {skipped} shapes that are no box, polygon or mask{_alone(images)}')

    return read_each(files_below(path, '.xml'), read, faults), []


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
            objects, size, skipped, others = [], None, 0, 0
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
                    others += bool(_label_of(region))  # else an answer to a question
            left = bool(others and not objects)
            if skipped:
                faults.append(f'{file}: {skipped} regions of {image} that are no rectangle or polygon{_alone(left)}')
            if not left:
                yield Labelled(image, objects, size)
        if unfinished:
            faults.append(f'{file}: {unfinished} tasks without an annotation, or with cancelled ones alone')

    return read_each(files_below(path, '.json'), read, faults), []


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

    return read_each(files_below(path, '.csv'), read, faults), []


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

    return read_each(files_below(path, '.json'), read, faults), []


FORMATS: Dict[str, Callable] = dict(
    coco=_coco,
    voc=_voc,
    yolo=read_yolo,
    labelme=_labelme,
    cvat=_cvat,
    labelstudio=_labelstudio,
    openimages=_openimages,
    sa1b=_sa1b,
)
"""Readers of other tools' annotations, by the name of the format."""
