"""Checks a whole data set before a run of days meets its one bad file."""
import argparse
import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Dict, Iterable, Iterator, List, Optional, Tuple

import cv2
import numpy as np

from ..transfer import atomic_write
from .image_io import BadImageError, clip_boxes, has_extent, read_image
from .objects import ObjectDataset, _read_json, segmentation_to_mask

Task = Tuple[str, Optional[Tuple[int, int]], List[Tuple[int, list, object]]]  # image, its size as told, its objects


def check_image(task: Task) -> Tuple[Optional[str], List[Tuple[int, str]]]:
    """Decodes one image and looks at its objects.

    Args:
        task: (path, (height, width) or None, [(number, box xyxy as it is in the file's own form, segmentation or None)]).

    Returns:
        What is wrong with the image, or None; (number, what is wrong) of each bad object.
    """
    path, told, objects = task
    try:
        size = read_image(path).shape[:2]
    except BadImageError as error:
        return str(error), []
    if told is not None and tuple(told) != size:
        return f'image {path} is {size[1]} x {size[0]} pixels but its annotation says {told[1]} x {told[0]}.', []
    bad = []
    for number, (box, shown), segmentation in objects:
        why = _box_fault(box, shown, size) or _mask_fault(segmentation, size)
        if why:
            bad.append((number, why))
    return None, bad


def _box_fault(box, shown, size) -> Optional[str]:
    boxes = np.array([box], np.float64)
    with np.errstate(invalid='ignore'):
        usable = has_extent(boxes)[0] and has_extent(clip_boxes(boxes, *size))[0]
    return None if usable else f'the box {shown} has no pixel inside the image'


def _mask_fault(segmentation, size) -> Optional[str]:
    if not segmentation:
        return None  # its box stands for it
    try:
        mask = segmentation_to_mask(segmentation, *size)
    except ValueError as error:
        return str(error)
    except Exception as error:  # pycocotools has no class of its own for what it can't read
        return f'its mask can not be read ({type(error).__name__}: {error})'
    return None if mask.any() else 'its mask has no pixel'


def check(tasks: List[Task], workers: int) -> Iterator[Tuple[Optional[str], List[Tuple[int, str]]]]:
    """:func:`check_image` of all, in order, by so many processes (0: here)."""
    if not workers:
        yield from map(check_image, tasks)
        return
    with ProcessPoolExecutor(workers, initializer=partial(cv2.setNumThreads, 0)) as pool:
        yield from pool.map(check_image, tasks, chunksize=max(1, min(64, len(tasks) // (4 * workers))))


def _tasks(args: argparse.Namespace) -> Tuple[List[Task], Optional[dict]]:
    """What to check, and the content of the annotation file if it is a json."""
    root = Path(args.data)
    if not args.ann_file.lower().endswith('.json'):
        dataset = ObjectDataset(args.data, args.ann_file, args.images)
        return [(dataset.get_data_info(i)['img_path'], None, []) for i in range(len(dataset))], None
    path, folder = root / args.ann_file, root / args.images
    if not path.is_file():
        raise FileNotFoundError(f'annotation file {path} does not exist; check --data and --ann-file.')
    content = _read_json(str(path))
    ObjectDataset(args.data, args.ann_file, args.images)  # says in one sentence what makes the file unusable
    if 'images' not in content:
        number, tasks = 0, []
        for name, boxes in content.items():
            tasks.append((str(folder / name), None, [(number + i, (box, box), None) for i, box in enumerate(boxes)]))
            number += len(boxes)
        return tasks, content
    objects: Dict[object, list] = {image['id']: [] for image in content['images']}
    for number, annotation in enumerate(content['annotations']):
        x, y, w, h = annotation['bbox']
        entry = (number, ((x, y, x + w, y + h), annotation['bbox']), annotation.get('segmentation'))
        objects.get(annotation['image_id'], []).append(entry)
    return [(str(folder / image['file_name']),
             (image['height'], image['width']) if image.get('height') and image.get('width') else None, objects[image['id']])
            for image in content['images']], content


def _cleaned(content: Optional[dict], tasks: List[Task], bad_images: Iterable[int], bad_objects: Iterable[int], folder: Path) -> str:
    bad_images, bad_objects = set(bad_images), set(bad_objects)
    if content is None:
        return ''.join(f'{os.path.relpath(task[0], folder)}\n' for i, task in enumerate(tasks) if i not in bad_images)
    if 'images' not in content:
        kept = {name: [box for (number, *_), box in zip(tasks[i][2], boxes) if number not in bad_objects]
                for i, (name, boxes) in enumerate(content.items()) if i not in bad_images}
        return json.dumps(kept)
    images = [image for i, image in enumerate(content['images']) if i not in bad_images]
    ids = {image['id'] for image in images}
    annotations = [annotation for number, annotation in enumerate(content['annotations'])
                   if number not in bad_objects and annotation['image_id'] in ids]
    return json.dumps({**content, 'images': images, 'annotations': annotations})


def main(argv: Optional[List[str]] = None) -> None:
    """``tools/misc/verify_dataset.py --data DIR [--ann-file FILE] [--images DIR]``; exits with 1 if something is bad."""
    from ..cli import _guarded
    parser = argparse.ArgumentParser(description='Decode every image of a data set and check its boxes and masks.')
    parser.add_argument('--data', default='', metavar='DIR', help='folder of the annotations and images')
    parser.add_argument('--ann-file', default='', help='json of objects, or list of images, below DIR; without: all images')
    parser.add_argument('--images', default='', metavar='DIR', help='image folder, below --data')
    parser.add_argument('--workers', type=int, default=os.cpu_count() or 1, help='processes; 0: none (default: one a core)')
    parser.add_argument('--report', metavar='JSON', help='write what was found')
    parser.add_argument('--clean', metavar='FILE', help='write the annotations (or the list of images) without what is bad')
    args = parser.parse_args(argv)
    found: list = []
    _guarded(lambda: found.append(_verify(args)))
    if found[0]:
        sys.exit(1)


def _verify(args: argparse.Namespace) -> int:
    tasks, content = _tasks(args)
    bad_images: List[Tuple[int, str]] = []
    bad_objects: List[Tuple[int, int, str]] = []
    start = last = time.monotonic()
    for i, (wrong, objects) in enumerate(check(tasks, args.workers)):
        if wrong:
            bad_images.append((i, wrong))
        bad_objects += [(number, i, why) for number, why in objects]
        now = time.monotonic()
        if now - last > 2:
            last, done = now, i + 1
            print(f'{done}/{len(tasks)} images, {done / (now - start):.0f}/s, {(now - start) * (len(tasks) - done) / done:.0f} s left, '
                  f'{len(bad_images)} bad', file=sys.stderr, flush=True)
    count = sum(len(task[2]) for task in tasks)
    for _, wrong in bad_images[:50]:
        print(wrong)
    for number, i, why in bad_objects[:50]:
        print(f'object {number} of image {tasks[i][0]}: {why}')
    if len(bad_images) > 50 or len(bad_objects) > 50:
        print('(the first 50 of each kind; --report writes them all)')
    print(f'{len(tasks)} images, {len(bad_images)} bad; {count} objects, {len(bad_objects)} bad (those of bad images not looked at)')
    if args.report:
        report = dict(images=len(tasks), objects=count,
                      bad_images=[dict(image=tasks[i][0], why=wrong) for i, wrong in bad_images],
                      bad_objects=[dict(annotation=number, image=tasks[i][0], why=why) for number, i, why in bad_objects])
        atomic_write(args.report, lambda file: file.write(json.dumps(report, indent=1).encode()))
    if args.clean:
        text = _cleaned(content, tasks, (i for i, _ in bad_images), (number for number, *_ in bad_objects), Path(args.data, args.images))
        atomic_write(args.clean, lambda file: file.write(text.encode()))
        print(f'written: {args.clean}')
    return len(bad_images) + len(bad_objects)
