"""The search through a folder of images: in parts, by several processes, continued where it was interrupted.

Every chunk of images has a file of its own beside the result (``objects.json.parts/000012.json``), written whole or not
at all. The result is put together from them in the order of the images, so that it does not depend on who did which
chunk, or when.
"""

import hashlib
import json
import math
import os
import shutil
import signal
import sys
import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO, Callable, Dict, Iterator, List, Optional, Protocol, Sequence, Set, Tuple

import cv2
import numpy as np
import torch

from ..datasets import ObjectDataset, read_image
from ..datasets.image_io import as_colours
from ..datasets.layout import FOUND
from ..utils.environment import cores
from ..utils.errors import BadImageError, FolderInUseError, StageError, too_many_bad
from ..utils.files import PathLike, atomic_write, atomic_write_text
from .found import Found

CHUNK = 32  # images of a part
PIXELS = 1 << 25  # in memory at once, by which a part of large images is searched in pieces
FORMAT = 4  # raise it with every change of what a source finds: parts of another one are not continued


class Source(Protocol):
    """Where objects come from: a dataclass of its settings, sent to the processes before it has loaded anything."""

    name: str
    on_gpu: bool
    reading: dict
    """How files are read, as arguments of ``read_image``; {}: they are usual photographs."""

    def __call__(self, images: Sequence[np.ndarray]) -> List[Found]:
        """What is in each image, RGB uint8 [H, W, 3], or as ``reading`` has it; the same on every call."""


def image_names(images: PathLike, ann_file: PathLike = '') -> List[str]:
    """Return the paths of the images, relative to their folder and in a fixed order: all below it, or those that a list
    or json names."""
    dataset = ObjectDataset('', ann_file, images)
    return [Path(os.path.relpath(dataset.get_data_info(i)['img_path'], images)).as_posix() for i in range(len(dataset))]


def find_objects(
    images: PathLike,
    out: PathLike,
    source: Source,
    *,
    ann_file: PathLike = '',
    workers: Optional[int] = None,
    max_bad_share: float = 0.01,
    say: Optional[Callable[[str], None]] = None,
) -> dict:
    """Find objects in all images of a folder and write them as a COCO-style json, with scores and, where there are any,
    masks.

    Interrupted at any moment and called again with the same arguments, it goes on where it was and writes the same
    file, bit for bit.

    Args:
        images: Folder of images.
        out: The json to write. It must not exist unless it is the result of the same call.
        source: See :class:`Source`.
        ann_file: List of images, or json whose images to take; empty: all of the folder.
        workers: Processes; 0: none beside this one; None: one per core, and none for a source on a GPU.
        max_bad_share: Share of the images that may be unreadable, of three or more at least one, unless it is 0; they
            are left out and named in ``info``.
        say: Gets a line of progress every few seconds; None: stderr.

    Returns:
        ``info`` of the result: source, settings, numbers of images and objects, bad images, and ``images_at_top``, the
        number of images with as many objects as a source's ``top`` keeps.

    Raises:
        BadImageError: more images are bad than allowed; what was found is kept.
        FolderInUseError: ``out`` or its parts belong to another call, or its images have other sizes in bytes now.
        FileWriteError: the disk is full; what was found is kept.
    """
    out, say = Path(out), say or (lambda line: print(line, file=sys.stderr, flush=True))
    names = image_names(images, ann_file)
    if workers is None:
        workers = 0 if source.on_gpu else cores()
    settings = dict(
        source=source.name,
        format=FORMAT,
        settings=described(source),
        reading=json.loads(json.dumps(source.reading)),
        chunk=CHUNK,
        images=len(names),
        names=hashlib.sha256('\n'.join(names).encode('utf-8', 'surrogateescape')).hexdigest()[:16],
    )
    folder = out.with_name(out.name + '.parts')
    if out.is_file():
        done = _info(out)
        if done is None or {key: done.get(key) for key in settings} != settings:
            raise FolderInUseError(
                f'{out} exists and was not made by this command with these settings: name another --out.'
            )
        bad = {name for name, _ in done['bad_images']}
        if done.get('files', files := _files(str(images), names, bad)) != files:
            raise FolderInUseError(
                f'images in {images} have changed since {out} was made of them: remove it, or name another --out.'
            )
        shutil.rmtree(folder, ignore_errors=True)
        say(f'{out}: done before, {done["objects"]} objects in {done["images"]} images')
        return done
    _claim(folder, settings)
    chunks = [names[i : i + CHUNK] for i in range(0, len(names), CHUNK)]
    root = str(images)
    _search(root, chunks, folder, source, workers, max_bad_share, say)
    info = _assemble(out, folder, len(chunks), settings, root, names)
    shutil.rmtree(folder, ignore_errors=True)
    return info


def described(source: Source) -> dict:
    """Return a source's settings as they stand in the result: files by name and content, as a folder may be moved."""
    told = asdict(source)
    for key, value in told.items():
        if key in ('checkpoint', 'config') and value and os.path.isfile(value):
            told[key] = f'{Path(value).name} (sha256 {_digest(value)})'
        elif key == 'device':
            told[key] = 'cpu' if str(value) == 'cpu' else 'gpu'
    return json.loads(json.dumps(told))


def _digest(path: PathLike) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


def _files(root: str, names: Sequence[str], bad: Set[str]) -> str:
    """A hash of the sizes in bytes of all images but the bad ones: of others, the objects are others."""
    sizes = _sizes(root, [name for name in names if name not in bad])
    return hashlib.sha256(json.dumps(sizes).encode()).hexdigest()[:16]


def _sizes(root: str, names: Sequence[str]) -> List[Optional[int]]:
    paths = (os.path.join(root, name) for name in names)
    return [os.path.getsize(path) if os.path.exists(path) else None for path in paths]


def _info(path: Path) -> Optional[dict]:
    try:
        info = json.loads(path.read_bytes()).get('info')
    except (ValueError, AttributeError):
        return None
    return info if isinstance(info, dict) else None


def _claim(folder: Path, settings: dict) -> None:
    record = folder / 'settings.json'
    if record.is_file():
        if json.loads(record.read_text()) != settings:
            raise FolderInUseError(
                f'{folder} holds parts of a search with other settings or images: finish it, remove the folder, or '
                'name another --out.'
            )
        return
    if (
        folder.exists()
        and any(folder.iterdir())
        and not all(p.name.startswith('.settings.json.') for p in folder.iterdir())
    ):
        raise FolderInUseError(f'{folder} is in use for something else: name another --out.')
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write_text(record, json.dumps(settings))


def _part(folder: Path, number: int) -> Path:
    return folder / f'{number:06d}.json'


def _read_part(path: Path) -> Optional[dict]:
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):  # not there, or damaged by the disk: it is made again
        return None


def _search(
    root: str,
    chunks: List[List[str]],
    folder: Path,
    source: Source,
    workers: int,
    max_bad_share: float,
    say: Callable[[str], None],
) -> None:
    total = sum(map(len, chunks))
    bad: Dict[int, List[List[str]]] = {}
    todo = []
    for number in range(len(chunks)):
        part = _read_part(_part(folder, number))
        sizes = _sizes(root, chunks[number])
        if (
            part is None
            or part.get('sizes', sizes) != sizes  # of other images
            or any(_readable(root, name, source) for name, _ in part['bad'])  # readable since
        ):
            todo.append(number)
        else:
            bad[number] = part['bad']
    before = total - sum(len(chunks[number]) for number in todo)
    if before and todo:
        say(f'{before} of {total} images were done before')
    start = last = time.monotonic()
    done = objects = 0
    for number, part in _parts(root, chunks, todo, source, workers):
        atomic_write_text(_part(folder, number), json.dumps(dict(part, sizes=_sizes(root, chunks[number]))))
        bad[number] = part['bad']
        done += len(chunks[number])
        objects += sum(len(image['objects']) for image in part['images'])
        now = time.monotonic()
        if now - last > 2:
            last, speed = now, done / (now - start)
            left = (total - before - done) / speed
            say(
                f'{before + done}/{total} images, {speed:.2g} images/s, {_clock(left)} left, '
                f'{objects / max(done, 1):.1f} objects per image, {sum(map(len, bad.values()))} bad'
            )
        _check_bad(bad, total, max_bad_share, folder)
    _check_bad(bad, total, max_bad_share, folder)
    if done:
        say(
            f'{done} images in {_clock(time.monotonic() - start)}: {done / (time.monotonic() - start):.3g} images/s '
            f'with {workers} processes'
        )


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(math.ceil(seconds), 60)
    return f'{minutes // 60}:{minutes % 60:02d}:{seconds:02d} h' if minutes >= 60 else f'{minutes}:{seconds:02d} min'


def _readable(root: str, name: str, source: Source) -> bool:
    try:
        read_image(os.path.join(root, name), **source.reading)
    except BadImageError:
        return False
    return True


def _check_bad(bad: Dict[int, List[List[str]]], total: int, most: float, folder: Path) -> None:
    found = [entry for number in sorted(bad) for entry in bad[number]]
    if too_many_bad(len(found), total, most):
        more = f' and {len(found) - 10} more' if len(found) > 10 else ''
        raise BadImageError(
            f'{len(found)} of {total} images are bad, above --max-bad-share {most:g} (the first: {found[0][1]}; '
            f'{", ".join(name for name, _ in found[:10])}{more}): fix or remove them, or raise the share, and start '
            f'the same command again, which keeps what was found (in {folder}).'
        )


def _parts(
    root: str, chunks: List[List[str]], todo: List[int], source: Source, workers: int
) -> Iterator[Tuple[int, dict]]:
    if not workers:
        with _single_thread(source.on_gpu):
            for number in todo:
                yield number, find_chunk(root, chunks[number], source)
        return
    workers = min(workers, max(len(todo), 1))
    with ProcessPoolExecutor(workers, initializer=_begin, initargs=(source,)) as pool:
        waiting: Dict[Future, int] = {}
        order = iter(todo)
        try:
            while True:
                for number in order:
                    waiting[pool.submit(_work, root, chunks[number])] = number
                    if len(waiting) >= 2 * workers:  # what is done and not yet written stays small
                        break
                if not waiting:
                    return
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    yield waiting.pop(future), future.result()
        except BrokenProcessPool:
            raise StageError(
                'a process of the search was ended from outside, most often because memory ran out: start the same '
                'command again with fewer --workers; what was found is kept.'
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def _single_thread(on_gpu: bool) -> Iterator[None]:
    """Sums of floats depend on how many threads share them: one everywhere, so that the result depends on no machine's
    cores."""
    threads = torch.get_num_threads(), cv2.getNumThreads()
    if not on_gpu:
        torch.set_num_threads(1)
    cv2.setNumThreads(0)
    try:
        yield
    finally:
        torch.set_num_threads(threads[0])
        cv2.setNumThreads(threads[1])


_SOURCE: Optional[Source] = None  # of a worker process


def _begin(source: Source) -> None:
    global _SOURCE
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of Ctrl-C the parent speaks
    parent = os.getppid()

    def end_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    _SOURCE = source


def _work(root: str, names: List[str]) -> dict:
    return find_chunk(root, names, _SOURCE)


def find_chunk(root: str, names: Sequence[str], source: Source) -> dict:
    """Return what a part's file holds: ``images`` with their objects, and ``bad``, a name and a reason each."""
    records: List[dict] = []
    bad: List[List[str]] = []
    read: List[Tuple[str, np.ndarray]] = []
    for name in names:
        try:
            read.append((name, read_image(os.path.join(root, name), **source.reading)))
        except BadImageError as error:
            bad.append([name, str(error).replace(os.path.join(root, name), name)])
        if sum(image.shape[0] * image.shape[1] for _, image in read) >= PIXELS:
            records += _records(read, source)
            read = []
    return dict(images=records + _records(read, source), bad=bad)


def _records(read: Sequence[Tuple[str, np.ndarray]], source: Source) -> List[dict]:
    records = []
    for (name, image), found in zip(read, source([image for _, image in read]) if read else ()):
        objects = []
        for i, (box, score) in enumerate(zip(found.boxes.tolist(), found.scores.tolist())):
            x1, y1, x2, y2 = (round(side, 2) for side in box)
            entry = dict(bbox=[x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)], score=round(score, 5))
            objects.append(entry if found.masks is None else dict(entry, segmentation=found.masks[i]))
        records.append(
            dict(
                file_name=name,
                height=image.shape[0],
                width=image.shape[1],
                dhash=difference_hash(image),
                objects=objects,
            )
        )
    return records


def difference_hash(image: np.ndarray) -> str:
    """Return 64 bits as hexadecimal digits, which differ in few places between copies of a picture that were scaled or
    compressed anew."""
    grey = cv2.resize(cv2.cvtColor(as_colours(image), cv2.COLOR_RGB2GRAY), (9, 8), interpolation=cv2.INTER_AREA)
    return np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes().hex()


def _assemble(out: Path, folder: Path, count: int, settings: dict, root: str, names: Sequence[str]) -> dict:
    """Join the parts, one at a time in memory, to the result."""
    from pycocotools import mask as coco_mask

    def parts() -> Iterator[dict]:
        for number in range(count):
            part = _read_part(_part(folder, number))
            if part is None:
                raise StageError(
                    f'{_part(folder, number)} can no longer be read: start the same command again, it is made anew.'
                )
            yield part

    images = objects = full = 0
    top = settings['settings'].get('top')
    bad: List[List[str]] = []
    for part in parts():
        images += len(part['images'])
        objects += sum(len(image['objects']) for image in part['images'])
        full += sum(len(image['objects']) == top for image in part['images'])
        bad += part['bad']
    info = dict(description=FOUND, **settings, objects=objects, bad_images=bad)
    info['files'] = _files(root, names, {name for name, _ in bad})
    if top is not None:
        info['images_at_top'] = full

    def write(file: BinaryIO) -> None:
        def put(text: str) -> None:
            file.write(text.encode())

        put('{"info": ' + json.dumps(info) + ',\n"categories": [{"id": 1, "name": "object"}],\n"images": [')
        number = 0
        for part in parts():
            for image in part['images']:
                number += 1
                put(',\n' if number > 1 else '\n')
                put(
                    json.dumps(
                        dict(id=number, **{key: image[key] for key in ('file_name', 'height', 'width', 'dhash')})
                    )
                )
        put('],\n"annotations": [')
        number = key = 0
        for part in parts():
            for image in part['images']:
                number += 1
                for entry in image['objects']:
                    key += 1
                    mask = entry.get('segmentation')
                    area = int(coco_mask.area(mask)) if mask else round(entry['bbox'][2] * entry['bbox'][3], 2)
                    put(',\n' if key > 1 else '\n')
                    put(json.dumps(dict(id=key, image_id=number, category_id=1, iscrowd=0, area=area, **entry)))
        put(']}\n')

    atomic_write(out, write)
    return info
