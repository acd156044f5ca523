"""YOLO: labels by the name of their image, classes and splits by a yaml near them.

Its boxes are parsed by `globox <https://github.com/laclouis5/globox>`_.
"""

import re
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import yaml
from mmengine.logging import print_log

from ..datasets.layout import SPLITS
from ..utils.errors import AnnotationError
from .labelled import Annotated, ImageIndex, Labelled
from .parsing import files_below, read_each, read_lines

_NO_LABELS = {'classes.txt', 'labels.txt', 'train.txt', 'val.txt', 'valid.txt', 'test.txt', 'notes.txt'}
_NAME_FILES = ('classes.txt', 'obj.names', '_darknet.labels', 'labels.txt')
_MOST_CLASSES = 100_000  # each number below the highest one gets a name


def yolo_labels(path: Path, index: Optional[ImageIndex]) -> List[Path]:
    """Return the label files of images that there are.

    Raises:
        AnnotationError: there are labels, and images, but of other ones.
    """
    found = [file for file in files_below(path, '.txt') if file.name not in _NO_LABELS]
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


def read_yolo(path: Path, index: ImageIndex, faults: List[str]) -> Tuple[List[Tuple[Path, Labelled]], List[str]]:
    """Return the objects of label files with the files, and the names of the classes."""
    from globox import BoundingBox

    folder = path.parent if path.is_file() else path
    files = yolo_labels(folder, index)
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

    found = read_each(files, read, faults)
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
        known = not isinstance(name, bool) and isinstance(name, (str, int, float))
        if not re.fullmatch('[0-9]{1,5}', number) or int(number) in names or not known:
            where = f'names[{key!r}]' if isinstance(found, (dict, list)) else 'names'
            raise AnnotationError(
                f'{file}: {where} is {name!r:.60}; names must be a list of the classes, or give each number, once, '
                'a name (0: cat); no, yes, on and off need quotes.'
            )
        names[int(number)] = str(name)
    return [names.get(i, str(i)) for i in range(max(names, default=-1) + 1)]


def _listed(place: Path) -> List[str]:
    """The names in the first file of a folder that lists some."""
    for file in (place / name for name in _NAME_FILES):
        lines = read_lines(file) if file.is_file() else []
        if names := [line.strip() for line in lines if line.strip()]:
            return names
    return []


def splits_of_yolo(data: Path, root: Path, paths: Sequence[Path]) -> Dict[Path, str]:
    """Return the splits of images by what the yaml of a data set names for each: folders, or lists of images. One that
    is of several splits is not trained on, unless none would be."""
    found: Dict[str, Dict[Path, str]] = {split: {} for split in SPLITS}
    file, told = next(iter(yolo_yamls(data, [root / path for path in paths])), (data / 'none', {}))
    base = file.parent
    real = {path: (root / path).resolve() for path in paths}
    for split, words in SPLITS.items():
        named = [told[word] for word in words if told.get(word)]
        for entry in (str(each) for entries in named for each in (entries if isinstance(entries, list) else [entries])):
            # Roboflow writes ../train/images of a folder beside the yaml
            near = (base / str(told.get('path') or '') / entry, base / entry, base / entry.lstrip('./'), data / entry)
            place = next((place.resolve() for place in near if place.exists()), data / 'nowhere')
            if place.is_file():
                lines = read_lines(place)
                listed = {(folder / line.strip()).resolve() for line in lines for folder in (place.parent, base, data)}
                inside = [path for path in paths if real[path] in listed]
            else:
                inside = [path for path in paths if real[path].is_relative_to(place)]
            if not inside and split != 'test' and base.is_relative_to(data):  # exports name a test split unasked
                print_log(
                    f'{file}: {entry}, its {split} split, is not there or holds no annotated image: correct it',
                    logger='current',
                    level=30,
                )
            found[split].update(dict.fromkeys(inside, split))
    train, held = found['train'], {**found['test'], **found['val']}
    both = [path for path in train if path in held]
    if len(both) == len(train):
        return {**held, **train}
    if both:
        print_log(
            f'{file}: {len(both)} images of its train split are of its val or test split, too, and are not trained on '
            f'({both[0]}, ...)',
            logger='current',
            level=30,
        )
    return {**train, **held}
