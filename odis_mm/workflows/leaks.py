"""Images of the evaluation that are among the images of the training: the same file, the same picture re-encoded,
resized, turned or mirrored, or another picture of the same scene."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Collection, List, Optional, Sequence, Tuple

import numpy as np
from PIL import Image

from ..utils.errors import ConfigError

SIDE = 24  # of the grey thumbnail
SAME_WHOLE = 0.97  # correlation of the thumbnails
# correlation of what is finer than a third of the thumbnail: the blur of two like scenes is alike, their detail is not
SAME_DETAIL = 0.85
FLAT = 2.0  # grey levels: below it a thumbnail has no pattern to compare
# largest difference of a sixteenth's mean, in standard deviations: JPEG of quality 20 and half the size stay below, a
# moved piece not
LOCAL = 0.2
CANDIDATES = 10  # looked at closely: a neighbouring frame of a film can be more like an image than its re-encoded copy


@dataclass
class Prints:
    """What identifies images.

    Attributes:
        paths: Files.
        digests: SHA-256 of each file's bytes; '' where it could not be read.
        whole, detail: float32 [n, 576], thumbnails of zero mean and unit length; zero where the image is flat or cannot
            be read.
    """

    paths: List[Path]
    digests: List[str]
    whole: np.ndarray
    detail: np.ndarray

    def without(self, paths: Collection[Path]) -> 'Prints':
        """Return those of the other files."""
        kept = [i for i, path in enumerate(self.paths) if path not in paths]
        return Prints(
            [self.paths[i] for i in kept], [self.digests[i] for i in kept], self.whole[kept], self.detail[kept]
        )


@dataclass(frozen=True)
class Duplicate:
    """An image of the evaluation and the one of the training that it is, or looks like.

    Attributes:
        kind: 'file': the same bytes; 'picture': the same pixels but for encoding, size, turns, brightness; 'scene': a
            picture of the same scene, in which something differs.
        similarity: Correlation of the thumbnails.
    """

    evaluated: Path
    trained: Path
    kind: str
    similarity: float


class LeakError(ConfigError):
    """Images that are evaluated are among those that are trained on."""


def fingerprints(paths: Sequence[Path], threads: Optional[int] = None) -> Prints:
    """Read every image once, and small: JPEG files are decoded at an eighth of their size where that suffices."""
    paths = [Path(path) for path in paths]
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        found = list(pool.map(_fingerprint, paths))
    thumbnails = np.stack([thumbnail for _, thumbnail in found]) if found else np.zeros((0, SIDE, SIDE), np.float32)
    whole, detail = _features(thumbnails)
    return Prints(paths, [digest for digest, _ in found], whole, detail)


def duplicates(evaluated: Prints, trained: Prints) -> List[Duplicate]:
    """For each evaluated image the most similar trained one that is the same picture, else the one that is most like
    it, if that is the same scene: at most one per image.

    An image that is cropped, or drawn over, by much is not found.
    """
    where = {digest: i for i, digest in reversed(list(enumerate(trained.digests))) if digest}
    # of each evaluated image: (similarity, trained image, quarter turns, mirrored)
    like: List[List[Tuple[float, int, int, bool]]] = [[] for _ in evaluated.paths]
    grids = [part.reshape(-1, SIDE, SIDE) for part in (evaluated.whole, evaluated.detail)]
    for turns in range(4):
        for mirrored in (False, True):
            turned = [np.rot90(grid[:, :, ::-1] if mirrored else grid, turns, axes=(1, 2)) for grid in grids]
            rows = [np.ascontiguousarray(grid).reshape(len(grid), -1) for grid in turned]
            for start in range(0, len(like), 256):
                part = slice(start, start + 256)
                whole = rows[0][part] @ trained.whole.T
                whole[rows[1][part] @ trained.detail.T < SAME_DETAIL] = -1
                for row in np.flatnonzero((whole >= SAME_WHOLE).any(1)):
                    near = np.argsort(-whole[row], kind='stable')[:CANDIDATES]
                    more = [
                        (float(whole[row, j]), int(j), turns, mirrored) for j in near if whole[row, j] >= SAME_WHOLE
                    ]
                    like[start + row] = sorted([*like[start + row], *more], key=lambda c: -c[0])[:CANDIDATES]
    found = []
    for i, path in enumerate(evaluated.paths):
        if evaluated.digests[i] in where:
            found.append(Duplicate(path, trained.paths[where[evaluated.digests[i]]], 'file', 1.0))
        elif like[i]:
            same = (c for c in like[i] if local_difference(path, trained.paths[c[1]], *c[2:]) <= LOCAL)
            picture = next(same, None)
            similarity, other, *_ = picture or like[i][0]
            kind = 'picture' if picture else 'scene'
            found.append(Duplicate(path, trained.paths[other], kind, round(similarity, 4)))
    return found


def local_difference(a: Path, b: Path, turns: int = 0, mirrored: bool = False) -> float:
    """Largest difference between parts of two pictures, a sixteenth of their sides long, in standard deviations of
    their grey levels."""
    grids = []
    for path in (a, b):
        grey = np.asarray(_grey(path, 64), np.float32)
        grids.append((grey - grey.mean()) / (grey.std() + 1e-6))
    first = np.rot90(grids[0][:, ::-1] if mirrored else grids[0], turns)
    return float(np.abs(first - grids[1]).reshape(16, 4, 16, 4).mean((1, 3)).max())


def message(found: Sequence[Duplicate], most: int = 10) -> str:
    """One sentence that names them and says what can be done."""
    pairs = ', '.join(
        f'{d.evaluated.name} = {d.trained}' + ('' if d.kind == 'file' else ' (the same picture, another file)')
        for d in found[:most]
    )
    more = f' and {len(found) - most} more' if len(found) > most else ''
    return (
        f'{len({d.evaluated for d in found})} images that are evaluated are among those that are trained on, so the '
        f'comparison would tell nothing: {pairs}{more}; --duplicates drop (data.duplicates in a plan) leaves them out '
        'of the training, and --duplicates allow keeps them, if you looked and they are different.'
    )


def _fingerprint(path: Path) -> Tuple[str, np.ndarray]:
    blank = np.zeros((SIDE, SIDE), np.float32)
    try:
        content = path.read_bytes()
    except OSError:
        return '', blank
    digest = hashlib.sha256(content).hexdigest()
    try:
        return digest, np.asarray(_grey(path, SIDE), np.float32)
    except Exception:  # training names bad images; here they only cannot be compared
        return digest, blank


def _grey(path: Path, side: int) -> Image.Image:
    with Image.open(path) as image:
        image.draft('L', (4 * side, 4 * side))
        grey = _stretched(image) if image.mode.startswith(('I', 'F')) else image.convert('L')
        return grey.resize((side, side), Image.Resampling.BILINEAR)


def _stretched(image: Image.Image) -> Image.Image:
    """Values of more than 8 bits, which Pillow would cut at 255, from the least to the greatest."""
    values = np.nan_to_num(np.asarray(image, np.float32))
    values = (values - values.min()) / max(float(np.ptp(values)), 1e-6)
    return Image.fromarray(np.rint(255 * values).astype(np.uint8))


def _features(thumbnails: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Whole and detail [n, SIDE * SIDE], of zero mean and unit length."""
    third = SIDE // 3
    blocks = thumbnails.reshape(-1, third, 3, third, 3)
    detail = (blocks - blocks.mean((2, 4), keepdims=True)).reshape(len(thumbnails), SIDE * SIDE)
    flat = thumbnails.reshape(len(thumbnails), SIDE * SIDE)
    whole = flat - flat.mean(1, keepdims=True)
    patterned = (whole.std(1) > FLAT)[:, None]
    return tuple(
        (np.where(patterned, part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-6), 0)).astype(
            np.float32
        )
        for part in (whole, detail)
    )
