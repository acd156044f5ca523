"""Annotations of other tools as COCO-style content."""

import json
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

import numpy as np
from mmengine.logging import print_log

from ..datasets.layout import SPLITS, Split, of_other_splits, part_of, split_of_folders
from ..datasets.segmentation import segmentation_area
from ..utils.errors import AnnotationError, ConfigError, MissingFileError
from ..utils.files import PathLike, atomic_write_text
from ..utils.paths import of_other_images
from .formats import FORMATS, recognise
from .labelled import Annotated, ImageIndex, Labelled, Size, told_of_other_folders
from .parsing import read_lines
from .yolo import splits_of_yolo


def load_annotations(path: PathLike, images: PathLike, format: str = 'auto') -> dict:
    """Return annotations of another tool as COCO-style content: ``info``, ``images``, ``annotations``, ``categories``.

    ``file_name`` is relative to ``images``; labels are kept. Images that no annotation file names are not listed. An
    image whose annotation cannot be used (unreadable, of another size, not found) is left out with a warning, and named
    in ``info['skipped']``.

    Args:
        path: A file or a folder, as the tool exports it; see :data:`FORMATS`.
        images: Folder of the images, nested as you like.
        format: A key of :data:`FORMATS`, or 'auto' to look at the files.

    Raises:
        AnnotationError: nothing can be used, or the format is not recognised.
        MissingFileError: a path does not exist.
    """
    path = Path(path)
    if not path.exists():
        raise MissingFileError(f'annotations {path} do not exist.')
    index = ImageIndex(Path(images))
    if format == 'auto':
        format = recognise(path, index)
    if format not in FORMATS:
        raise ConfigError(f'annotation format {format!r} is unknown: choose auto or one of {", ".join(FORMATS)}.')
    faults: List[str] = []
    records, names = FORMATS[format](path, index, faults)
    content = _as_coco(records, names, index, path, faults, upright=format != 'coco')
    content['info'] = dict(description=f'{format} annotations', skipped=faults)
    if not content['annotations']:
        why = f'; the first fault: {faults[0]}' if faults else ''
        raise AnnotationError(
            of_other_images(path, index.missed, images) or f'{path} holds no usable object in {format} format{why}.'
        )
    if faults:
        more = f', and {len(faults) - 3} more' if len(faults) > 3 else ''
        print_log(
            f'{path}: {len(faults)} annotations left out: {"; ".join(faults[:3])}{more}', logger='current', level=30
        )
    return content


def _as_coco(
    records: List[Tuple[Path, Labelled]],
    names: List[str],
    index: ImageIndex,
    path: Path,
    faults: List[str],
    upright: bool,
) -> dict:
    """``upright``: of a tool that draws on the image as its EXIF orientation shows it, unless the size that it notes is
    that of the stored pixels."""
    labels = names or sorted({entry.label for _, record in records for entry in record.objects})
    number = {label: i + 1 for i, label in enumerate(dict.fromkeys(labels))}
    images: List[dict] = []
    annotations: List[dict] = []
    seen: Dict[str, str] = {}  # by image: the reference to it
    found, best = [], {}
    for file, record in records:
        try:
            name = index.find(record.image, file)
        except AnnotationError as error:
            faults.append(str(error))
            continue
        fit = index.fit(name, record.image, file)
        found.append((file, record, name, fit))
        best[name] = max(best.get(name, fit), fit)
    for file, record, name, fit in found:
        try:
            size = index.size(name)
            if fit < best[name]:  # of a folder that is not here, while that of the image is annotated too
                raise AnnotationError(
                    f'{file}: its image {record.image} is not below {index.folder}: {name} is that of another entry'
                )
            if name in seen:
                raise AnnotationError(f'{file}: image {name} is annotated twice')
            if record.size is not None and tuple(record.size) != size:
                hint = ' (turned by its EXIF orientation: store it upright)' if tuple(record.size) == size[::-1] else ''
                raise AnnotationError(
                    f'{file}: image {name} is {size[1]} x {size[0]} pixels, not {record.size[1]} x '
                    f'{record.size[0]}{hint}'
                )
            turn = index.orientation(name) if upright else 1
            told = record.size is not None and turn >= 5 and size[0] != size[1]  # those from 5 on swap the sides
            if turn != 1 and not told:
                raise AnnotationError(f'{file}: image {name} is turned by its EXIF orientation: store it upright')
        except AnnotationError as error:
            faults.append(str(error))
            continue
        seen[name] = record.image
        images.append(dict(id=len(images) + 1, file_name=name, height=size[0], width=size[1]))
        for entry in record.objects:
            number.setdefault(entry.label, len(number) + 1)
            x1, y1, x2, y2 = (round(float(v), 3) for v in entry.box)
            if not (x2 > x1 and y2 > y1 and np.isfinite((x1, y1, x2, y2)).all()):
                faults.append(f'{file}: a box of {name} without extent ({x1}, {y1}, {x2}, {y2})')
                continue
            annotation = dict(
                id=len(annotations) + 1,
                image_id=len(images),
                category_id=number[entry.label],
                bbox=[x1, y1, round(x2 - x1, 3), round(y2 - y1, 3)],
                area=_area(entry, size) or round((x2 - x1) * (y2 - y1), 3),
                iscrowd=int(entry.crowd),
            )
            if entry.segmentation is not None:
                annotation['segmentation'] = entry.segmentation
            if entry.score is not None:
                annotation['score'] = entry.score
            annotations.append(annotation)
    if line := told_of_other_folders(path, seen.items()):
        print_log(line, logger='current', level=30)
    return dict(
        images=images, annotations=annotations, categories=[dict(id=i, name=str(label)) for label, i in number.items()]
    )


def _area(entry: Annotated, size: Size) -> Optional[float]:
    """Of the mask, by which COCO's metrics sort by size; None: there is none."""
    if entry.area is not None or entry.segmentation is None:
        return entry.area
    try:
        return segmentation_area(entry.segmentation, *size)
    except AnnotationError:  # who reads the masks says so
        return None


def imported_splits(data: PathLike, images: Optional[PathLike], folder: PathLike) -> Dict[str, Split]:
    """Return annotations of other tools (YOLO, Pascal VOC, ...) by split, as COCO-style files that are written to
    ``folder``.

    The split of an image is that of the list in ``ImageSets/Main`` that names it, or of the folder or list that YOLO's
    yaml names; else that of a folder on its path (``val``, ``val2017``, ``val_set``); else it is 'train', or, where
    lists tell the training images, left out.

    Raises:
        AnnotationError: no annotation is recognised, none can be used, or none is of training images.
    """
    data, folder = Path(data), Path(folder)
    root = Path(images) if images else data
    content = load_annotations(data, root)
    paths = [Path(image['file_name']) for image in content['images']]
    listed = _lists_of_voc(data, root, paths)
    if content['info']['description'].startswith('yolo'):
        listed = splits_of_yolo(data, root, paths)
    told = [listed.get(path) or split_of_folders(path.parent.parts) for path in paths]
    unlisted = [path for path, split in zip(paths, told) if split is None] if 'train' in listed.values() else []
    if unlisted:
        print_log(
            f'{data}: {len(unlisted)} annotated images are in none of its lists of a split and are left out '
            f'({unlisted[0]}, ...)',
            logger='current',
            level=30,
        )
    if None in told and content['info']['description'].startswith('coco') and (other := of_other_splits(data)):
        raise AnnotationError(
            f'{other[0]} is of a validation or test split by its name, and no json of training images lies near it: '
            'name that with --train FILE (pretrain: --boxes FILE; odis-mm compare: --set data.train=FILE).'
        )
    of: Dict[str, List[dict]] = {}
    for split, image in zip(told, content['images']):
        if split or not unlisted:
            of.setdefault(split or 'train', []).append(image)
    if 'train' not in of:
        raise AnnotationError(
            f'{data} holds annotations of {" and ".join(sorted(of))} images alone ({paths[0]}, ...): name the folder '
            'that holds those of training images, too.'
        )
    folder.mkdir(parents=True, exist_ok=True)
    splits = {}
    for name, chosen in of.items():
        atomic_write_text(folder / f'{name}.json', json.dumps(part_of(content, chosen)))
        splits[name] = Split(folder / f'{name}.json', root)
    return splits


def _lists_of_voc(data: Path, root: Path, paths: Sequence[Path]) -> Dict[Path, str]:
    """The splits of images by the lists in ``ImageSets/Main`` of a folder or, as in VOCdevkit, of folders in it."""
    found: Dict[Path, str] = {}
    files = sorted(file for place in ('', '*/', '*/*/') for file in data.glob(f'{place}ImageSets/Main/*.txt'))
    # an image that is also in a list of another split is not trained on
    for file in sorted(files, key=lambda file: file.stem.lower() not in SPLITS['train']):
        split = next((name for name, words in SPLITS.items() if file.stem.lower() in words), None)
        near = [path for path in paths if file.parents[2] in (root / path).parents] or paths  # images elsewhere
        stems: Dict[str, List[Path]] = {}
        for path in near if split else ():
            stems.setdefault(path.stem, []).append(path)
        for line in read_lines(file) if split else ():
            words = [line.strip(), *line.split()[:1]]  # a name may have spaces; a number may follow it
            known = [stem for word in words for stem in (word, Path(word).stem) if stem in stems]
            found.update(dict.fromkeys(stems[known[0]] if known else (), split))
    return found
