"""Checks a whole data set before a run of days meets its one bad file."""

import json
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Dict, Iterable, Iterator, List, NamedTuple, Optional, Tuple

import cv2
import numpy as np

from ..utils.errors import BadImageError, MissingFileError, UserError
from ..utils.files import PathLike
from .files import read_json, shown
from .image_io import clip_boxes, has_extent, image_kind, read_image, read_raw
from .layout import find_splits
from .objects import ObjectDataset
from .segmentation import segmentation_to_mask
from .values import identity, number, side

Task = Tuple[str, Optional[Tuple[int, int]], List[Tuple[int, list, object]]]  # image, its size as told, its objects


class Found(NamedTuple):
    """What is wrong with an image, or None; (number, what is wrong) of each bad object; what the image holds, in
    words."""

    wrong: Optional[str]
    objects: List[Tuple[int, str]]
    kind: str


def check_image(task: Task, **reading) -> Found:
    """Decode one image and look at its objects.

    Args:
        task: (path, (height, width) or None, [(number, box xyxy as it is in the file's own form, segmentation or
            None)]).
        reading: How pixels are made of values, see ``read_image``.
    """
    path, told, objects = task
    try:
        size = read_image(path, **reading).shape[:2]
        kind = image_kind(read_raw(path, reading.get('channels', 3))) if _may_be_deep(path) else 'of 8 bits'
    except BadImageError as error:
        return Found(str(error), [], '')
    if told is not None and tuple(told) != size:
        wrong = f'image {shown(path)} is {size[1]} x {size[0]} pixels but its annotation says {told[1]} x {told[0]}.'
        return Found(wrong, [], kind)
    bad = []
    for place, (box, text), segmentation in objects:
        why = _box_fault(box, text, size) or _mask_fault(segmentation, size)
        if why:
            bad.append((place, why))
    return Found(None, bad, kind)


def _may_be_deep(path: str) -> bool:
    return path.lower().endswith(('.png', '.tif', '.tiff'))


def _box_fault(box, text, size) -> Optional[str]:
    boxes = np.array([box], np.float64)
    with np.errstate(invalid='ignore'):
        usable = has_extent(boxes)[0] and has_extent(clip_boxes(boxes, *size))[0]
    return None if usable else f'the box {text} has no pixel inside the image'


def _mask_fault(segmentation, size) -> Optional[str]:
    if not segmentation:
        return None  # its box stands for it
    try:
        mask = segmentation_to_mask(segmentation, *size)
    except ValueError as error:
        return str(error)
    except Exception as error:  # pycocotools has no class of its own for what it can't read
        return f'its mask cannot be read ({type(error).__name__}: {error})'
    return None if mask.any() else 'its mask has no pixel'


def check(tasks: List[Task], workers: int, **reading) -> Iterator[Found]:
    """Yield :func:`check_image` of all, in order, by so many processes (0: here)."""
    one = partial(check_image, **reading)
    if not workers:
        yield from map(one, tasks)
        return
    with ProcessPoolExecutor(workers, initializer=partial(cv2.setNumThreads, 0)) as pool:
        yield from pool.map(one, tasks, chunksize=max(1, min(64, len(tasks) // (4 * workers))))


def tasks(data: str, ann_file: str, images: str) -> Tuple[List[Task], Optional[dict]]:
    """Return what to check, and the content of the annotation file if it is a json.

    Raises:
        MissingFileError: there is no such annotation file or folder.
    """
    root = Path(data)
    if not ann_file.lower().endswith('.json'):
        dataset = ObjectDataset(data, ann_file, images)
        return [(dataset.get_data_info(i)['img_path'], None, []) for i in range(len(dataset))], None
    path, folder = root / ann_file, root / images
    if not path.is_file():
        raise MissingFileError(f'annotation file {path} does not exist; check --data and --ann-file.')
    content = read_json(path)
    ObjectDataset(data, ann_file, images)  # says in one sentence what makes the file unusable
    if 'images' not in content:
        count, tasks = 0, []
        for name, boxes in content.items():
            objects = [(count + i, (list(map(number, box)), box), None) for i, box in enumerate(boxes)]
            tasks.append((str(folder / name), None, objects))
            count += len(boxes)
        return tasks, content
    objects: Dict[object, list] = {identity(image['id']): [] for image in content['images']}
    for i, annotation in enumerate(content['annotations']):
        x, y, w, h = map(number, annotation['bbox'])
        entry = (i, ((x, y, x + w, y + h), annotation['bbox']), annotation.get('segmentation'))
        objects.get(identity(annotation['image_id']), []).append(entry)
    return [
        (str(folder / image['file_name']), _size(image), objects[identity(image['id'])]) for image in content['images']
    ], content


def _size(image: dict) -> Optional[Tuple[int, int]]:
    told = side(image.get('height')), side(image.get('width'))
    return None if None in told else told


def notes(content: Optional[dict]) -> List[str]:
    """What no image shows, as lines: annotations of images that the file does not have, or with the id of another
    annotation, which tools that go by ids take for it."""
    if content is None or 'images' not in content:
        return []
    images = {identity(image['id']) for image in content['images']}
    orphans = sum(identity(annotation['image_id']) not in images for annotation in content['annotations'])
    lines = [f'{orphans} annotations belong to no image of the file and are not looked at'] if orphans else []
    ids = [str(annotation['id']) for annotation in content['annotations'] if annotation.get('id') is not None]
    shared = len(ids) - len(set(ids))
    if shared:
        lines.append(f'{shared} annotations have the id of another one, so that tools which go by ids mix them up')
    return lines


def annotations_beside(data: PathLike) -> List[Tuple[str, str]]:
    """Return the COCO-style files in a folder and the folders of their images, both relative to it; none if what is
    there cannot be told apart."""
    try:
        splits = find_splits(data)
    except UserError:
        return []
    return [(os.path.relpath(split.ann_file, data), os.path.relpath(split.images, data)) for split in splits.values()]


def cleaned(
    content: Optional[dict], tasks: List[Task], bad_images: Iterable[int], bad_objects: Iterable[int], folder: Path
) -> str:
    """Return the annotation file, or list of images, without what is bad.

    Args:
        content: Of the json; None: there is none, and a list of paths is written.
        tasks: All images, from :func:`tasks`.
        bad_images: Their numbers among the tasks.
        bad_objects: Their numbers in the file.
        folder: What the paths of a list are relative to.
    """
    bad_images, bad_objects = set(bad_images), set(bad_objects)
    if content is None:
        return ''.join(f'{os.path.relpath(task[0], folder)}\n' for i, task in enumerate(tasks) if i not in bad_images)
    if 'images' not in content:
        kept = {
            name: [box for (number, *_), box in zip(tasks[i][2], boxes) if number not in bad_objects]
            for i, (name, boxes) in enumerate(content.items())
            if i not in bad_images
        }
        return json.dumps(kept)
    images = [image for i, image in enumerate(content['images']) if i not in bad_images]
    ids = {identity(image['id']) for image in images}
    annotations = [
        annotation
        for number, annotation in enumerate(content['annotations'])
        if number not in bad_objects and identity(annotation['image_id']) in ids
    ]
    return json.dumps({**content, 'images': images, 'annotations': annotations})
