"""The embedded demo set: rendered images with boxes and masks in COCO format, so that nothing needs a download.

    odis-mm demo --root data/odis_demo

Each class is one surface pattern on one silhouette. Colour tells nothing: every object draws its two tones anew, from
the same distribution for all classes. Pattern periods are those that a patch of 8 pixels sees, and no class is another
one's mirror image, since horizontal flips are an augmentation.
"""

import json
import math
import multiprocessing
import os
import re
import shutil
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from ..utils.errors import ConfigError, FileWriteError, FolderInUseError
from ..utils.files import PathLike, locked

DRAWING = 2  # raise it with every change of what is drawn: sets on disk of another drawing are rendered again
MANIFEST = 'odis_demo.json'
DEFAULT_ROOT = 'data/odis_demo'
DEFAULTS = dict(num_train=2000, num_val=200, size=128, seed=0)
CLASSES = ('striped disc', 'diagonal triangle', 'checkered square', 'ringed diamond', 'dotted flower', 'grid cross')
_SPLITS = ('train', 'val')
_FIRST_ID = dict(train=1, val=1_000_000_001)
_CHROMA = np.array([[1.402, -0.714, 0], [0, -0.344, 1.772]], np.float32)  # (Cr, Cb) -> RGB offsets of zero luminance
_TURN = 2048  # samples of a silhouette's radius per turn


def _silhouettes() -> np.ndarray:
    """Radius of each class's outline as a function of the angle: float32 [classes, _TURN], largest value 1."""
    angle = np.arange(_TURN) * (2 * math.pi / _TURN)
    c, s = np.abs(np.cos(angle)), np.abs(np.sin(angle))
    with np.errstate(divide='ignore'):
        third = 2 * math.pi / 3
        triangle = 0.5 / np.cos((angle + math.pi / 2) % third - third / 2)
        square = math.sqrt(0.5) / np.maximum(c, s)
        diamond = 1 / (c + s)
        flower = 0.74 + 0.26 * np.cos(5 * angle)
        arm = 0.42
        cross = np.maximum(np.minimum(1 / c, arm / s), np.minimum(arm / c, 1 / s))
    shapes = np.stack([np.ones(_TURN), triangle, square, diamond, flower, cross])
    return (shapes / shapes.max(1, keepdims=True)).astype(np.float32)


_RADII = _silhouettes()


def _pattern(label: int, u: np.ndarray, v: np.ndarray, rho: np.ndarray, period: float) -> np.ndarray:
    """Surface of a class at the points (u, v), rho from the middle, all in pixels: the mix of its two tones, 0..1."""
    k = 2 * math.pi / period
    if label in (0, 1):  # stripes; the caller has turned v
        wave = np.sin(k * v)
    elif label == 2:
        wave = 1.5 * np.sin(0.8 * k * u) * np.sin(0.8 * k * v)
    elif label == 3:
        wave = np.sin(k * rho)
    elif label == 4:
        wave = np.cos(0.9 * k * u) + np.cos(0.9 * k * v) - 0.7
    else:
        wave = 1.6 * (np.maximum(np.cos(k * u), np.cos(k * v)) - 0.6)
    return np.clip(0.5 + wave * max(period / 5, 1), 0, 1)


def two_tones(rng: np.random.Generator) -> np.ndarray:
    """Return two colours, float32 [2, 3], whose luminances differ by 90 to 130 levels; which is the brighter one is
    drawn.

    All objects are of about one brightness, so that two views of an object cannot simply agree on that.
    """
    gap, middle = rng.uniform(90, 130), rng.uniform(110, 146)
    luminance = middle + (gap / 2) * rng.choice((-1, 1)) * np.array([[1], [-1]])
    return (luminance + _chroma(rng, 2) @ _CHROMA).astype(np.float32)


def _chroma(rng: np.random.Generator, n: int) -> np.ndarray:
    """n muted colours (Cr, Cb), [n, 2]: one distribution for objects and backgrounds."""
    angle, radius = rng.uniform(0, 2 * math.pi, n), rng.uniform(0, 26, n)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    """A gradient, smooth noise of three scales and blotches, quieter than any object: float32 [size, size, 3]."""

    def noise(cells):
        grid = rng.standard_normal((cells, cells), dtype=np.float32)
        return cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC)

    ramp = np.linspace(-1, 1, size, dtype=np.float32)
    angle, coarse, blotch = rng.uniform(0, 2 * math.pi), noise(4), noise(7)
    slope = math.cos(angle) * ramp + math.sin(angle) * ramp[:, None]
    luminance = rng.uniform(60, 195) + rng.uniform(0, 16) * slope
    luminance += rng.uniform(3, 10) * coarse + rng.uniform(2, 6) * noise(12) + rng.uniform(1, 4) * noise(30)
    luminance += rng.uniform(-14, 14) * np.clip(0.5 + 4 * blotch, 0, 1)
    first, second = (_chroma(rng, 2) @ _CHROMA).astype(np.float32)
    return luminance[..., None] + first + np.clip(0.5 + 0.4 * coarse, 0, 1)[..., None] * (second - first)


def _draw_object(rng: np.random.Generator, canvas: np.ndarray, owner: np.ndarray, areas: list, label: int) -> int:
    """Draws one object over what is there, unless it would hide too much. Returns its area in pixels (0: not drawn).

    `owner` [size, size] holds the number of the topmost object (0: none), `areas` the areas of objects 1, 2, ... as
    they were drawn.
    """
    size = len(canvas)
    radius = math.exp(rng.uniform(math.log(9), math.log(36))) * size / 128
    cx, cy = rng.uniform(0.6 * radius, size - 0.6 * radius, 2)
    turn, stretch = math.radians(rng.uniform(-12, 12)), math.exp(rng.uniform(-0.15, 0.15))
    reach = math.ceil(radius * 1.16) + 1
    x0, y0 = int(cx) - reach, int(cy) - reach
    span = np.arange(2 * reach + 1, dtype=np.float32)
    dx = (span + np.float32(x0 + 0.5 - cx)) * np.float32(stretch)
    dy = (span + np.float32(y0 + 0.5 - cy))[:, None] / np.float32(stretch)
    c, s = np.float32(math.cos(turn)), np.float32(math.sin(turn))
    u, v = c * dx + s * dy, c * dy - s * dx
    rho = np.sqrt(u * u + v * v)
    angle = np.arctan2(v, u)
    outline = radius * _RADII[label][(angle * (_TURN / (2 * math.pi))).astype(np.int32) % _TURN]
    alpha = np.clip(outline - rho + 0.5, 0, 1)

    inside = slice(max(-y0, 0), min(size - y0, len(span))), slice(max(-x0, 0), min(size - x0, len(span)))
    window = slice(max(y0, 0), min(y0 + len(span), size)), slice(max(x0, 0), min(x0 + len(span), size))
    solid = alpha > 0.5
    seen = solid[inside]
    if seen.sum() < 0.75 * solid.sum():
        return 0
    hidden = np.bincount(owner[window][seen], minlength=len(areas) + 1)[1:]
    left = np.bincount(owner.ravel(), minlength=len(areas) + 1)[1:] - hidden
    if (left < 0.5 * np.array(areas)).any():
        return 0

    if label == 1:  # 45 degrees either way: a flipped one is one of the class
        tilt = rng.choice((-1, 1)) * math.pi / 4
        u, v = math.cos(tilt) * u + math.sin(tilt) * v, math.cos(tilt) * v - math.sin(tilt) * u
    period = min(max(0.26 * 2 * radius, 6 * size / 128), 13 * size / 128) * rng.uniform(0.9, 1.1)
    shift = rng.uniform(0, period, 2).astype(np.float32)
    mix = _pattern(label, u[inside] + shift[0], v[inside] + shift[1], rho[inside] + shift[0], period)[..., None]
    dark, bright = two_tones(rng)
    canvas[window] += alpha[inside][..., None] * (dark + mix * (bright - dark) - canvas[window])
    owner[window][seen] = len(areas) + 1
    return int(seen.sum())


def render(split: str, index: int, size: int = 128, seed: int = 0):
    """Draw one image; the same arguments always give the same one, whatever else is rendered.

    Returns:
        image (uint8 [size, size, 3], RGB), labels (int64 [n], into CLASSES), masks of the visible parts (bool
        [n, size, size]).
    """
    rng = np.random.default_rng((seed, _SPLITS.index(split), index))
    canvas, owner = _background(rng, size), np.zeros((size, size), np.int64)
    labels, areas = [], []
    for label in rng.integers(0, len(CLASSES), rng.integers(3, 7)).tolist():
        for _ in range(20):
            area = _draw_object(rng, canvas, owner, areas, label)
            if area:
                labels.append(label)
                areas.append(area)
                break
    canvas += 3 * rng.standard_normal((size, size, 1), dtype=np.float32)
    image = np.clip(canvas + 0.5, 0, 255).astype(np.uint8)
    return image, np.array(labels, np.int64), owner == np.arange(1, len(labels) + 1)[:, None, None]


def write_image(job):
    """Render and write one image; return its COCO entry and annotations (ids are given later)."""
    folder, split, index, size, seed = job
    image, labels, masks = render(split, index, size, seed)
    img_id = _FIRST_ID[split] + index
    name = f'{img_id:012d}.jpg'
    # cv2.imwrite only returns False on a full disk
    Path(folder, name).write_bytes(cv2.imencode('.jpg', image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 93])[1].tobytes())
    rles = coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))
    objects = [
        dict(
            image_id=img_id,
            category_id=int(label) + 1,
            iscrowd=0,
            area=int(area),
            bbox=box.tolist(),
            segmentation=dict(size=rle['size'], counts=rle['counts'].decode()),
        )
        for label, rle, area, box in zip(labels, rles, coco_mask.area(rles), coco_mask.toBbox(rles))
    ]
    return dict(id=img_id, file_name=name, width=size, height=size), objects


def _say(line: str):
    print(line, file=sys.stderr, flush=True)


def _map(jobs: list, processes: int):
    if processes > 1:
        # no multiprocessing.Pool, which ends its processes by SIGTERM: a handler that training had set before the fork
        # would survive it
        with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context('fork')) as pool:
            yield from pool.map(write_image, jobs, chunksize=32)
    else:
        yield from map(write_image, jobs)


def render_set(folder: Path, parameters: dict, processes: int):
    """Render images and annotations of a set into a new folder.

    Args:
        folder: It must not hold ``annotations/`` yet.
        parameters: ``num_train``, ``num_val``, ``size`` in pixels, ``seed``.
        processes: How many draw; 1: this one.
    """
    total, done = parameters['num_train'] + parameters['num_val'], 0
    start = shown = time.time()
    (folder / 'annotations').mkdir(parents=True)
    (folder / MANIFEST).write_text(json.dumps(parameters))
    for split in _SPLITS:
        images, annotations = [], []
        place = folder / f'{split}2017'
        place.mkdir()
        for image, objects in _map(
            [(str(place), split, i, parameters['size'], parameters['seed']) for i in range(parameters[f'num_{split}'])],
            processes,
        ):
            images.append(image)
            annotations += objects
            done += 1
            if done == total or time.time() > shown + 2:
                shown = time.time()
                left = (shown - start) / done * (total - done)
                _say(f'rendering the demo set: {done}/{total} images, {left:.0f} s left')
        for i, ann in enumerate(annotations, 1):
            ann['id'] = i
        categories = [dict(id=i, name=name, supercategory='demo') for i, name in enumerate(CLASSES, 1)]
        info = dict(description='odis_mm demo set, rendered', parameters=parameters)
        (folder / 'annotations' / f'instances_{split}2017.json').write_text(
            json.dumps(dict(info=info, licenses=[], images=images, annotations=annotations, categories=categories))
        )


def _foreign(root: Path) -> list:
    """Files in a folder that no rendering of the demo set wrote."""
    ours = re.compile(
        rf'{re.escape(MANIFEST)}|annotations/instances_(train|val)2017\.json|(train|val)2017/\d{{12}}\.jpg'
    )
    files = (path.relative_to(root) for path in root.rglob('*') if not path.is_dir())
    return [path for path in files if not ours.fullmatch(path.as_posix())]


def render_if_asked(data_root: PathLike) -> bool:
    """Render the demo set if ``data_root`` is its place: the folder that ODIS_DEMO_ROOT names, or data/odis_demo.
    Returns whether it is.

    Any other folder is the user's, and nothing is written to it.
    """
    if os.path.abspath(data_root) != os.path.abspath(demo_root()):
        return False
    if not Path(data_root, MANIFEST).is_file():  # a set of other parameters will do
        ensure_demo(data_root)
    return True


def _is_complete(root: Path, parameters: dict) -> bool:
    """True if `root` holds the whole set, False if it is absent, half there or of another drawing; else raises."""
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        found = json.loads((root / MANIFEST).read_text())
    except (OSError, ValueError):
        raise FolderInUseError(
            f'{root} exists and is no demo set (it has no readable {MANIFEST}): name another folder for the demo set '
            'by --root or ODIS_DEMO_ROOT; for images of your own take a recipe without "demo" in its name.'
        ) from None
    if {**found, 'drawing': None} != {**parameters, 'drawing': None}:
        raise FolderInUseError(
            f'{root} holds a demo set of other parameters ({found}); name another folder by --root or ODIS_DEMO_ROOT.'
        )
    return found == parameters and all(
        (root / 'annotations' / f'instances_{split}2017.json').is_file()
        and (root / f'{split}2017').is_dir()
        and len(os.listdir(root / f'{split}2017')) == parameters[f'num_{split}']
        for split in _SPLITS
    )


def demo_root(root=None, num_train: int = 2000, num_val: int = 200, size: int = 128, seed: int = 0) -> Path:
    """Return where the set of these parameters lies.

    `root` (default: $ODIS_DEMO_ROOT, else data/odis_demo) for the default parameters; for any others a folder beside
    it that is named after them, so that no request gets another one's images.
    """
    root = Path(root or os.environ.get('ODIS_DEMO_ROOT') or DEFAULT_ROOT)
    wanted = dict(num_train=num_train, num_val=num_val, size=size, seed=seed)
    if wanted == DEFAULTS:
        return root
    return root.with_name(f'{root.name}_{num_train}_{num_val}_{size}px_seed{seed}')


def ensure_demo(
    root=None, num_train: int = 2000, num_val: int = 200, size: int = 128, seed: int = 0, processes: int | None = None
) -> str:
    """Render the demo set unless it is there (about 3 ms per image) and return its folder, see `demo_root`.

    The folder holds {train,val}2017/*.jpg and annotations/instances_{train,val}2017.json, and appears under its name
    only when complete. Images depend on seed and size alone, not on `processes`: a larger set begins with a smaller.

    Raises:
        ConfigError: a parameter out of range.
        FolderInUseError: the folder holds something else.
        FileWriteError: it cannot be written.
    """
    if min(num_train, num_val) < 1 or size < 64 or seed < 0:
        raise ConfigError(
            'the demo set needs num_train >= 1, num_val >= 1, size >= 64 and seed >= 0; got '
            f'{num_train}, {num_val}, {size}, {seed}.'
        )
    target = demo_root(root, num_train, num_val, size, seed).absolute()
    parameters = dict(drawing=DRAWING, num_train=num_train, num_val=num_val, size=size, seed=seed)
    if _is_complete(target, parameters):
        return str(target)
    if processes is None:
        processes = min(2, os.cpu_count() or 1) if num_train + num_val > 300 and hasattr(os, 'fork') else 1
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target.with_name(f'.{target.name}.lock'), 'waiting for the process that renders the demo set'):
            if not _is_complete(target, parameters):
                replace_set(target, parameters, processes)
    except OSError as error:
        if error.errno is None:  # from _is_complete: it says all
            raise
        raise FileWriteError(
            f'the demo set could not be written to {target} ({error.strerror}); name another '
            'folder by --root or ODIS_DEMO_ROOT.'
        ) from error
    return str(target)


def replace_set(target: Path, parameters: dict, processes: int):
    """Render a set beside ``target`` and rename it there, in place of an incomplete or older one.

    Raises:
        FolderInUseError: the folder holds files that no rendering wrote.
    """
    foreign = _foreign(target) if target.is_dir() else []
    if foreign:
        raise FolderInUseError(
            f'{target} holds an incomplete or older demo set and files of other origin ({foreign[0]}, {len(foreign)} '
            'in all): move them, or name another folder by --root or ODIS_DEMO_ROOT.'
        )
    prefix = f'.{target.name}.tmp'
    for stale in target.parent.glob(prefix + '*'):  # of killed runs: the lock is ours
        shutil.rmtree(stale, ignore_errors=True)
    fresh = target.with_name(f'{prefix}{os.getpid()}')
    try:
        render_set(fresh, parameters, processes)
        if target.exists():  # empty, half there or of another drawing; renamed first: no process sees it half removed
            target.rename(f'{fresh}_old')
        fresh.rename(target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(f'{fresh}_old', ignore_errors=True)
