#!/usr/bin/env python
"""Mutated annotation files and images through the readers of training: each is read, or refused in one sentence that
names the file."""

import argparse
import copy
import gc
import json
import math
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

if __name__ == '__main__':
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # a checkout works without being installed

import cv2
import numpy as np

from odis_mm.datasets import ObjectDataset, read_image
from odis_mm.utils.errors import AnnotationError, BadImageError

SECONDS = 10  # of a processor, for one case
WALL = 120  # seconds without a word from a process: it hangs where Python cannot interrupt it
MEMORY = 2 << 30  # bytes, beyond what the process has at its start
IMAGE_SIZE = 48, 64
PIPELINE = [
    dict(type='LoadObjectImage'),
    dict(
        type='SampleViews',
        views=[dict(role='global', num=2, size=32, scale=(0.3, 1.0), ratio=(0.75, 1.34), flip=0.5)],
        patch_size=8,
        region='mask',
    ),
    dict(type='RenderViews'),
    dict(type='PackViews'),
]
VALUES = [
    None,
    True,
    False,
    '',
    'x',
    '12',
    0,
    -1,
    3,
    1.5,
    1e-300,
    1e308,
    10**18,
    2**70,
    -(2**70),
    math.nan,
    math.inf,
    -math.inf,
    [],
    {},
    [[]],
    [None],
    {'size': [48, 64], 'counts': '1'},
    {'size': [48, 64], 'counts': [1, 2, 3]},
    {'size': [48, 64], 'counts': [-5, 10**12]},
    {'size': [48, 64], 'counts': 'PPPPPPPPPPPPPPoooooooo'},
    {'size': 'xy', 'counts': 3},
    {'size': [-48, 64], 'counts': [3072]},
    {'size': [10**6, 10**6], 'counts': [10**12]},
    [[0, 0, 1e9, 0, 1e9, 1e9]],
    [[math.nan] * 6],
    [['a'] * 6],
    [[1, 2, 3, 4, 5, 6, 7]],
    [[[[1]]]],
    'é\ud800',
    '../' * 40,
    '/',
    '\0',
    'x' * 5000,
]

KEYS = {
    'images',
    'annotations',
    'categories',
    'image_id',
    'id',
    'bbox',
    'segmentation',
    'size',
    'counts',
    'file_name',
    'height',
    'width',
    'category_id',
    'iscrowd',
}


class Finding(NamedTuple):
    kind: str
    case: int
    what: str


# ---- annotations
def annotation_seeds(folder: Path, data_root: Optional[Path] = None) -> List[bytes]:
    """Files that are right: COCO with polygons, RLE of both forms and a crowd; a dict of boxes; of `data_root` the
    first images of COCO."""
    height, width = IMAGE_SIZE
    names = [f'{i}.jpg' for i in range(3)]
    rng = np.random.default_rng(0)
    for name in names:
        cv2.imwrite(str(folder / name), rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
    images = [dict(id=i + 1, file_name=name, height=height, width=width) for i, name in enumerate(names)]
    shapes = [
        [[5, 5, 30, 5, 30, 25, 5, 25]],
        dict(size=[height, width], counts=[400, 200, height * width - 600]),
        dict(size=[height, width], counts='P<X3a'),
        None,
    ]
    from pycocotools import mask as coco_mask

    shapes[2]['counts'] = coco_mask.frPyObjects(shapes[1], height, width)['counts'].decode()
    annotations = [
        dict(
            id=i,
            image_id=1 + i % 3,
            category_id=1 + i % 2,
            bbox=[5, 5, 25, 20],
            area=500,
            iscrowd=int(i == 7),
            **({} if shapes[i % 4] is None else {'segmentation': shapes[i % 4]}),
        )
        for i in range(9)
    ]
    coco = dict(images=images, annotations=annotations, categories=[dict(id=1, name='a'), dict(id=2, name='b')])
    seeds = [coco, {name: [[1, 2, 30, 40], [5, 5, 20, 20]] for name in names}]
    if data_root is not None:
        full = json.loads((data_root / 'annotations/instances_val2017.json').read_bytes())
        for part in (full['images'][:3], full['images'][3:6]):
            known = {image['id']: image for image in part}
            chosen = [ann for ann in full['annotations'] if ann['image_id'] in known]
            # stand-ins under the true names, of the true sizes: what is mutated is the json
            for image in part:
                path = folder / image['file_name']
                cv2.imwrite(str(path), rng.integers(0, 256, (image['height'], image['width'], 3), dtype=np.uint8))
            seeds.append(dict(images=part, annotations=chosen, categories=full['categories'][:5]))
    return [json.dumps(seed).encode() for seed in seeds]


def _places(tree: Any) -> List[Tuple[Any, Any]]:
    """(container, key) of every value in a nest of dicts and lists."""
    found, todo = [], [tree]
    while todo:
        node = todo.pop()
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            found.append((node, key))
            if isinstance(node[key], (dict, list)):
                todo.append(node[key])
    return found


def mutate_json(content: bytes, rng: np.random.Generator) -> bytes:
    """One to three changes of the tree: a key or entry lost, renamed, doubled, or with another value or another
    entry's."""
    tree = json.loads(content)
    for _ in range(rng.integers(1, 4)):
        places = _places(tree)
        if not places:
            break
        short = [place for place in places if place[1] in KEYS]
        pool = short if short and rng.random() < 0.7 else places
        node, key = pool[rng.integers(len(pool))]
        kind = rng.integers(6)
        if kind == 0:
            del node[key]
        elif kind == 1 and isinstance(node, dict):
            node[f'{key}_'] = node.pop(key)
        elif kind == 2:
            other, where = places[rng.integers(len(places))]
            node[key] = json.loads(json.dumps(other[where]))
        elif kind == 3 and isinstance(node, list):
            node.append(node[key])
        elif kind == 4 and isinstance(node[key], (int, float)):
            node[key] = (
                float(node[key] * rng.choice([-1.0, 0.0, 1e3, 1e12, 1e-9])) if rng.random() < 0.5 else -node[key]
            )
        else:
            node[key] = copy.deepcopy(VALUES[rng.integers(len(VALUES))])
    return json.dumps(tree).encode('utf-8', 'replace')


def mutate_bytes(content: bytes, rng: np.random.Generator) -> bytes:
    """Flipped bytes, a lost, doubled or zeroed stretch, a cut, deep nesting, or another encoding."""
    data = bytearray(content)
    start = int(rng.integers(len(data)))
    stop = min(len(data), start + int(rng.integers(1, 200)))
    kind = rng.integers(9)
    if kind < 3:
        for at in rng.integers(len(data), size=rng.integers(1, 20)):
            data[at] ^= 1 << rng.integers(8) if kind == 0 else int(rng.integers(1, 256))
    elif kind == 3:
        del data[start:]
    elif kind == 4:
        del data[start:stop]
    elif kind == 5:
        data[start:start] = data[start:stop]
    elif kind == 6:
        data[start:stop] = bytes(stop - start)
    elif kind == 7:
        depth = int(rng.choice([100, 2000, 200_000]))
        data[start:start] = rng.choice([b'[', b'{"a":']) * depth
    else:
        return content.decode().encode(str(rng.choice(['utf-16', 'utf-8-sig', 'utf-32', 'cp037'])))
    return bytes(data)


def annotation_case(seeds: List[bytes], number: int, seed: int) -> bytes:
    rng = np.random.default_rng((seed, 0, number))
    content = seeds[rng.integers(len(seeds))]
    return mutate_json(content, rng) if rng.random() < 0.6 else mutate_bytes(content, rng)


def read_annotations(path: Path) -> None:
    """As a training reads them, masks and all."""
    dataset = ObjectDataset(data_root=str(path.parent), ann_file=path.name, pipeline=PIPELINE)
    for i in range(len(dataset)):
        try:
            dataset[i]
        except BadImageError as error:  # of its image; of the others, each may be the first
            if dataset.get_data_info(i)['img_path'] not in str(error):
                raise


# ---- images
def image_seeds(data_root: Optional[Path] = None) -> List[bytes]:
    """JPEGs of several forms, PNG, GIF, WebP, BMP, TIFF; of `data_root` eight photographs."""
    rng = np.random.default_rng(0)
    smooth = cv2.resize(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), IMAGE_SIZE[::-1])
    grey = smooth[..., 0]
    forms = [
        ('.jpg', smooth, [cv2.IMWRITE_JPEG_QUALITY, 90]),
        ('.jpg', smooth, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]),
        ('.jpg', grey, []),
        ('.jpg', smooth, [cv2.IMWRITE_JPEG_RST_INTERVAL, 2]),
        ('.png', smooth, []),
        ('.webp', smooth, []),
        ('.bmp', smooth, []),
        ('.tiff', smooth, []),
        ('.png', smooth.astype(np.uint16) * 257, []),
    ]
    seeds = [cv2.imencode(suffix, image, options)[1].tobytes() for suffix, image, options in forms]
    import io

    from PIL import Image

    for kind in ('GIF', 'JPEG'):
        buffer = io.BytesIO()
        image = Image.fromarray(smooth)
        exif = Image.Exif()
        exif[0x0112] = 6
        image.save(buffer, kind, **(dict(exif=exif) if kind == 'JPEG' else {}))
        seeds.append(buffer.getvalue())
    seeds = seeds[:4] * 3 + seeds[4:]  # mostly JPEGs
    if data_root is not None:
        seeds += [path.read_bytes() for path in sorted((data_root / 'val2017').glob('*.jpg'))[:8]]
    return seeds


def image_case(seeds: List[bytes], number: int, seed: int) -> bytes:
    """A seed with flips, cuts, zeros, another size in its header, two of them joined, garbage after or in place of
    it."""
    rng = np.random.default_rng((seed, 1, number))
    content = seeds[rng.integers(len(seeds))]
    data, kind = bytearray(content), rng.integers(10)
    if kind < 3:
        limit = len(data) if kind else min(len(data), 700)  # the header
        for at in rng.integers(limit, size=rng.integers(1, 30)):
            data[at] = rng.integers(256)
    elif kind == 3:
        del data[rng.integers(len(data)) :]
    elif kind == 4:  # cut, with the marker that would say it is whole
        data = data[: rng.integers(2, len(data))] + b'\xff\xd9'
    elif kind == 5:
        start = rng.integers(len(data))
        data[start : start + rng.integers(1, 400)] = bytes(rng.integers(1, 400))
    elif kind == 6:
        _resize_header(data, rng)
    elif kind == 7:
        other = seeds[rng.integers(len(seeds))]
        data = data[: rng.integers(len(data))] + other[rng.integers(len(other)) :]
    elif kind == 8:
        data = bytearray(content[: rng.integers(0, 12)]) + rng.bytes(rng.integers(0, 2000))
    else:
        return [
            b'',
            b'\xff\xd8',
            b'\xff\xd8\xff\xd9',
            bytes(1000),
            b'<html>',
            b'\x89PNG\r\n\x1a\n',
            b'GIF89a',
            b'RIFF\0\0\0\0WEBPVP8 ',
            b'BM',
            b'II*\0',
        ][rng.integers(10)]
    return bytes(data)


def _resize_header(data: bytearray, rng: np.random.Generator) -> None:
    sides = [int(rng.choice([0, 1, 7, 4000, 11000, 30000, 65500, 65535])) for _ in range(2)]
    if data[:2] == b'\xff\xd8':
        at = next((i for i in range(2, len(data) - 9) if data[i] == 0xFF and data[i + 1] in (0xC0, 0xC1, 0xC2)), None)
        if at is not None:
            data[at + 5 : at + 9] = sides[0].to_bytes(2, 'big') + sides[1].to_bytes(2, 'big')
    elif data[:4] == b'\x89PNG':
        import zlib

        sides = [side * int(rng.choice([1, 1, 1000])) for side in sides]
        data[16:24] = sides[0].to_bytes(4, 'big') + sides[1].to_bytes(4, 'big')
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, 'big')
    elif data[:2] == b'BM':
        data[18:26] = b''.join(
            int(side * rng.choice([1, -1, 1000])).to_bytes(4, 'little', signed=True) for side in sides
        )
    else:
        for at in rng.integers(min(60, len(data)), size=6):
            data[at] = 255


def read_one_image(path: Path) -> None:
    image = read_image(path)
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size > 0, image.shape


# ---- carrying out
class Task(NamedTuple):
    name: str
    make: Callable[[List[bytes], int, int], bytes]
    read: Callable[[Path], None]
    file: str


TASKS = dict(
    annotations=Task('annotations', annotation_case, read_annotations, 'mutated.json'),
    images=Task('images', image_case, read_one_image, 'mutated.jpg'),
)


def judge(task: Task, path: Path) -> Tuple[str, str]:
    """'read'; 'refused' by one of our errors in one sentence that names the file; or 'wrong', with what."""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        task.read(path)
        return 'read', ''
    except (AnnotationError, BadImageError, FileNotFoundError) as error:
        text = str(error)
        # a json that names a missing image is refused by that name
        ours = str(path) in text or isinstance(error, BadImageError) and str(path.parent) in text
        if isinstance(error, FileNotFoundError) and not isinstance(error, BadImageError):
            ours = ours and error.errno is None
        return (
            ('refused', type(error).__name__)
            if ours and '\n' not in text
            else ('wrong', f'{type(error).__name__}: {text[:300]}')
        )
    except TimeoutError:
        return 'wrong', f'took more than {SECONDS} s of a processor'
    except BaseException as error:  # whatever a library raises is what is looked for
        return 'wrong', f'{type(error).__name__}: {str(error)[:300]}'
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _late(*_) -> None:
    raise TimeoutError


def work(task: Task, seeds: List[bytes], cases: range, seed: int, folder: Path, pipe: Connection) -> None:
    """A process: its cases one by one, each told before (which one a crash was of) and after."""
    signal.signal(signal.SIGPROF, _late)
    with open('/proc/self/statm') as f:
        used = int(f.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1), os.dup2(null, 2)  # libjpeg comments on what it sees
    cv2.setNumThreads(0)  # with 1, OpenCV would wait for threads that the fork left behind
    # a data set collects garbage when it is made, which would copy all memory that is shared with the parent
    gc.freeze()
    for case in cases:
        pipe.send((case, None))
        path = folder / task.file
        path.write_bytes(task.make(seeds, case, seed))
        pipe.send((case, judge(task, path)))
    pipe.close()


def fuzz(
    task: Task, seeds: List[bytes], count: int, seed: int, folder: Path, batch: int = 500, progress: bool = False
) -> Tuple[Counter, List[Finding]]:
    """Run ``count`` cases in processes of ``batch``; one that ends early or hangs is a finding, and the next process
    continues after it.

    Returns:
        How many were read, refused (by class of error) and wrong; the wrong ones.
    """
    counts, findings, context = Counter(), [], multiprocessing.get_context('fork')
    first = 0
    while first < count:
        cases = range(first, min(count, first + batch))
        mine, theirs = context.Pipe(duplex=False)
        process = context.Process(target=work, args=(task, seeds, cases, seed, folder, theirs), daemon=True)
        process.start()
        theirs.close()
        running, first = None, cases.stop
        while True:
            if not wait([mine], timeout=WALL):
                process.kill()
                fault = f'hung for {WALL} s in a library'
                break
            try:
                case, result = mine.recv()
            except EOFError:
                process.join()
                fault = '' if process.exitcode == 0 else f'ended the process (exit code {process.exitcode})'
                break
            running = case if result is None else None
            if result is not None:
                verdict, what = result
                counts[verdict if verdict != 'refused' else f'refused, {what}'] += 1
                if verdict == 'wrong':
                    findings.append(Finding(task.name, case, what))
        process.join()
        mine.close()
        if fault:
            case = cases.start if running is None else running
            counts['wrong'] += 1
            findings.append(Finding(task.name, case, fault))
            first = case + 1
        if progress:
            print(f'\r{task.name}: {first}/{count}, {counts["wrong"]} wrong', end='', file=sys.stderr, flush=True)
    return counts, findings


def main(argv: Optional[List[str]] = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--annotations', type=int, default=10000, help='cases (default 10000)')
    parser.add_argument('--images', type=int, default=10000, help='cases (default 10000)')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument(
        '--data-root',
        type=Path,
        help='of COCO (annotations/instances_val2017.json, val2017/): real files beside the made ones',
    )
    parser.add_argument('--keep', type=Path, metavar='DIR', help='write the files that were handled wrongly here')
    args = parser.parse_args(argv)
    wrong = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kinds: Dict[str, Tuple[int, List[bytes]]] = dict(
            annotations=(args.annotations, annotation_seeds(folder, args.data_root)),
            images=(args.images, image_seeds(args.data_root)),
        )
        for kind, (count, seeds) in kinds.items():
            begin = time.perf_counter()
            counts, findings = fuzz(TASKS[kind], seeds, count, args.seed, folder, progress=True)
            told = ', '.join(f'{number} {what}' for what, number in sorted(counts.items()))
            print(
                f'\r{kind}: {count} cases of {len(seeds)} seeds in {(time.perf_counter() - begin) / 60:.1f} min: {told}'
            )
            for finding in findings[:40]:
                print(f'  case {finding.case}: {finding.what}')
                if args.keep:
                    args.keep.mkdir(parents=True, exist_ok=True)
                    (args.keep / f'{finding.case}_{TASKS[kind].file}').write_bytes(
                        TASKS[kind].make(seeds, finding.case, args.seed)
                    )
            wrong += len(findings)
    if wrong:
        sys.exit(1)


if __name__ == '__main__':
    main()
