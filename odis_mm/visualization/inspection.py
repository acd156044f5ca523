"""What a recipe makes of images, as a page, with every drawn number checked against pixels.

The pictures are drawn from the geometry that training uses (:mod:`odis_mm.structures`). The checks know nothing of it:
they paint an object or a crop into an image of the original's size, cut, resize, flip and turn that image, and look
where the paint is.
"""

import base64
import html
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..datasets import segmentation_to_mask
from ..datasets.image_io import as_colours
from ..datasets.transforms import render_view
from ..structures import View, boxes_to_view, orient, pair_intersections, stack_views
from ..utils.errors import AnnotationError
from ..utils.files import PathLike, atomic_write_text
from ..utils.progress import reported
from .views import draw_views, shade_view

_PICTURE = re.compile(r'\d{3,}_(views|pairs)\.png')  # how the pictures of a page are named
CELLS = 7  # a side of what two views share, as the losses compare it
_SIDES = ('left edge', 'top edge', 'right edge', 'bottom edge')


@dataclass(frozen=True)
class Check:
    """A drawn number beside the same number from pixels.

    Attributes:
        where: Which view or pair of views.
        what: Which number.
        drawn, measured: In ``unit``.
        tolerance: Largest difference that the grid of pixels explains.
    """

    where: str
    what: str
    drawn: float
    measured: float
    tolerance: float
    unit: str = 'px'

    @property
    def differs(self) -> bool:
        """Whether the drawn number is further from the measured one than ``tolerance``."""
        return not abs(self.drawn - self.measured) <= self.tolerance

    def __str__(self) -> str:
        off = self.drawn - self.measured
        return (
            f'{self.where}: {self.what} is drawn at {self.drawn:.1f} {self.unit}, the pixels say '
            f'{self.measured:.1f} ({off:+.1f})'
        )


def through_pixels(image: np.ndarray, view: View) -> np.ndarray:
    """Cut, resize, flip and turn an array float32 [H, W] as the view says, by operations on pixels alone."""
    x, y, w, h = (int(side) for side in view.crop)
    part = np.ascontiguousarray(image[y : y + h, x : x + w], np.float32)
    for axis, (have, want) in enumerate(((h, view.size[0]), (w, view.size[1]))):
        size = (part.shape[1], want) if axis == 0 else (want, part.shape[0])
        part = cv2.resize(part, size, interpolation=cv2.INTER_AREA if want < have else cv2.INTER_LINEAR)
    if view.flip:
        part = part[:, ::-1]
    for _ in range(view.rot90 % 4):  # counter-clockwise: the right edge comes to the top
        part = part.swapaxes(0, 1)[::-1]
    return np.ascontiguousarray(part)


def painted(box: Sequence[float], height: int, width: int) -> np.ndarray:
    """Share of each pixel that a box (x1, y1, x2, y2) covers: float32 [H, W]."""

    def along(low: float, high: float, count: int) -> np.ndarray:
        edge = np.arange(count)
        return (np.minimum(edge + 1, high) - np.maximum(edge, low)).clip(0, 1)

    return np.outer(along(box[1], box[3], height), along(box[0], box[2], width)).astype(np.float32)


def _slack(view: View) -> float:
    """How far the edge of paint may lie from the edge of what was painted, in pixels of the view."""
    return 1 + 0.75 * max(view.size[0] / view.crop[3], view.size[1] / view.crop[2], 1)


def _extent(paint: np.ndarray) -> Optional[Tuple[int, int, int, int]]:
    rows, cols = (paint > 0.5).any(1), (paint > 0.5).any(0)
    if not rows.any():
        return None
    (y1, y2), (x1, x2) = ((int(f[0]), int(f[-1]) + 1) for f in (np.flatnonzero(rows), np.flatnonzero(cols)))
    return x1, y1, x2, y2


def _check_box(where: str, what: str, drawn: np.ndarray, paint: np.ndarray, slack: float) -> List[Check]:
    found = _extent(paint)
    if found is None:  # a sliver that covers no pixel's half
        least = float(min(drawn[2] - drawn[0], drawn[3] - drawn[1]))
        return [Check(where, f'least side of {what}', max(least, 0.0), 0.0, slack)]
    return [Check(where, f'{side} of {what}', float(d), float(f), slack) for side, d, f in zip(_SIDES, drawn, found)]


def _check_patches(where: str, mask: np.ndarray, paint: np.ndarray, slack: float) -> Check:
    """Patches that surely hold the object must be in the mask, those that surely do not must not."""
    kernel = np.ones((2 * int(np.ceil(slack)) + 1,) * 2, np.uint8)
    sure = cv2.erode((paint > 0.5).astype(np.uint8), kernel, borderValue=1)
    possible = cv2.dilate((paint > 0).astype(np.uint8), kernel)
    rows, cols = mask.shape

    def patches(pixels: np.ndarray) -> np.ndarray:
        return pixels.reshape(rows, len(pixels) // rows, cols, -1).any((1, 3))

    wrong = int((mask & ~patches(possible)).sum() + (~mask & patches(sure)).sum())
    return Check(where, "number of the object's patches", int(mask.sum()), int(mask.sum()) - wrong, 0, 'patches')


def check_sample(sample: dict, region: str = 'box', min_cover: Sequence[float] = ()) -> List[Check]:
    """Compare what the pictures of a sample show with pixels.

    Args:
        sample: Results of the pipeline before packing, as :func:`draw_views` takes them.
        region: 'box' or 'mask': what the sampler takes for the object.
        min_cover: Of the sampler: share of each global view that the object must cover to count as visible.
    """
    views, roles, target = sample['views'], sample['view_roles'], sample.get('target', -1)
    height, width = sample['img'].shape[:2]
    names = [f'{role} view {i + 1}' for i, role in enumerate(roles)]
    checks: List[Check] = []
    for view, where in zip(views, names):
        shown = cv2.blur(render_view(sample['img'], view).astype(np.float32), (5, 5))
        expected = np.stack([through_pixels(sample['img'][..., c], view) for c in range(sample['img'].shape[2])], 2)
        apart = float(np.abs(shown - cv2.blur(expected, (5, 5))).mean())
        checks.append(Check(where, 'difference of the picture to its crop', apart, 0.0, 6.0, 'grey levels'))
    if target >= 0:
        box = np.asarray(sample['bboxes'][target], np.float64)
        whole, paint = painted(box, height, width), None
        paint = whole
        if region == 'mask' and sample.get('masks') is not None and sample['masks'][target]:
            try:
                mask = segmentation_to_mask(sample['masks'][target], height, width)
                paint = mask.astype(np.float32) if mask.any() else whole
            except AnnotationError:
                pass
        for i, (view, where) in enumerate(zip(views, names)):
            drawn = boxes_to_view(box, view, clip=True)
            checks += _check_box(where, "the target's box", drawn, through_pixels(whole, view), _slack(view))
            if roles[i] != 'global':
                continue
            seen = through_pixels(paint, view)
            checks.append(_check_patches(where, sample['patch_masks'][i], seen, _slack(view)))
            least = min_cover[i] if i < len(min_cover) else 0.0
            share = 100 * float(seen.mean())
            visible = (
                share > 0 and share >= 100 * least - 1 if sample['object_visible'][i] else share >= 100 * least + 1
            )
            told = bool(sample['object_visible'][i])
            checks.append(Check(where, 'visibility of the object', float(told), float(visible), 0, '(1: visible)'))
    for i, mask in enumerate(sample.get('mim_masks', ())):
        size = sample['pixels'][i].shape
        tinted = shade_view(np.zeros(size, np.uint8), np.ones((1, 1), bool), mask).any(2).mean()
        checks.append(
            Check(names[i], 'share of masked patches', 100 * float(mask.mean()), 100 * float(tinted), 0.01, '%')
        )
    for pair in shared_pairs(sample):
        checks += _check_pair(sample, names, *pair)
    return checks


def shared_pairs(sample: dict) -> List[Tuple[int, int]]:
    """Return the pairs (global view, other view) that the losses of GTSA and ALFM compare; none for a recipe with
    objects or masked patches."""
    if sample.get('target', -1) >= 0 or 'mim_masks' in sample:
        return []
    count = len(sample['views'])
    globals_ = [i for i, role in enumerate(sample['view_roles']) if role == 'global']
    area = pair_intersections(stack_views(sample['views']))[2]
    return [(q, v) for q in globals_ for v in range(count) if v != q and area[q, v] > 0]


def _cells(box: np.ndarray) -> np.ndarray:
    """Centres of the cells of a rectangle, [S, S, 2]."""
    steps = (np.arange(CELLS) + 0.5) / CELLS
    x, y = box[0] + (box[2] - box[0]) * steps, box[1] + (box[3] - box[1]) * steps
    return np.stack(np.broadcast_arrays(x[None], y[:, None]), -1)


def matched_cells(views: Sequence[View], q: int, v: int) -> Tuple[np.ndarray, np.ndarray]:
    """Return the centres of the cells of what two views share, in pixels of either, [S, S, 2]: cell (i, j) of one meets
    cell (i, j) of the other.

    As the losses have it: the teacher's are turned to the student's (GTSA); where there are flips, both are brought
    upright (ALFM).
    """
    first, second, _ = pair_intersections(stack_views([views[q], views[v]]))
    cells = [_cells(first[0, 1]), _cells(second[0, 1])]
    planes = [np.moveaxis(c, -1, 0) for c in cells]
    if views[q].flip or views[v].flip:
        planes = [orient(p, view.flip, view.rot90, inverse=True) for p, view in zip(planes, (views[q], views[v]))]
    else:
        planes[0] = orient(planes[0], rot90=views[v].rot90 - views[q].rot90)
    return np.moveaxis(planes[0], 0, -1), np.moveaxis(planes[1], 0, -1)


def _check_pair(sample: dict, names: Sequence[str], q: int, v: int) -> List[Check]:
    views = sample['views']
    height, width = sample['img'].shape[:2]
    boxes = [part[0, 1] for part in pair_intersections(stack_views([views[q], views[v]]))[:2]]
    checks = []
    for here, other, box in ((q, v, boxes[0]), (v, q, boxes[1])):
        x, y, w, h = views[other].crop
        paint = through_pixels(painted((x, y, x + w, y + h), height, width), views[here])
        checks += _check_box(
            f'{names[here]} beside {names[other]}', 'the shared rectangle', box, paint, _slack(views[here])
        )
    rows, cols = np.mgrid[:height, :width].astype(np.float32) + 0.5
    places = []
    for cells, i in zip(matched_cells(views, q, v), (q, v)):
        at = cells.astype(np.float32) - 0.5
        place = [
            cv2.remap(
                through_pixels(ramp, views[i]),
                at[..., 0],
                at[..., 1],
                cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_REPLICATE,
            )
            for ramp in (cols, rows)
        ]
        places.append(np.stack(place, -1))
    apart = np.abs(places[0] - places[1]).max(-1)
    coarse = max(max(views[i].crop[2] / views[i].size[1], views[i].crop[3] / views[i].size[0], 1) for i in (q, v))
    where = f'{names[q]} and {names[v]}'
    checks += [
        Check(where, f'distance of matched cells {i}, {j} in the image', 0.0, float(apart[i, j]), 1.5 * coarse)
        for i in range(CELLS)
        for j in range(CELLS)
    ]
    return checks


def draw_pairs(sample: dict, out_png: str, most: int = 6) -> None:
    """Draw the shared rectangles of pairs of views, with their cells: cells of one colour meet in the loss.

    Args:
        sample: As of :func:`draw_views`.
        most: Pairs drawn at most.
    """
    pairs, views = shared_pairs(sample)[:most], sample['views']
    figure = Figure(
        figsize=(1.9 * 2 * min(len(pairs), 3) + 0.2, 2.2 * -(-len(pairs) // 3)), dpi=100, layout='constrained'
    )
    FigureCanvasAgg(figure)
    panels = figure.subplots(-(-len(pairs) // 3), 2 * min(len(pairs), 3), squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    shade = np.stack(np.meshgrid(np.linspace(0, 1, CELLS), np.linspace(0, 1, CELLS)), -1)
    colours = np.concatenate([shade, 0.6 - 0.6 * shade[..., :1]], 2).reshape(-1, 3)
    for n, (q, v) in enumerate(pairs):
        rectangles = [part[0, 1] for part in pair_intersections(stack_views([views[q], views[v]]))[:2]]
        for side, (i, cells, box) in enumerate(zip((q, v), matched_cells(views, q, v), rectangles)):
            axes = panels[n // 3, 2 * (n % 3) + side]
            axes.imshow(as_colours(sample['pixels'][i]))
            axes.add_patch(Rectangle(box[:2] - 0.5, *(box[2:] - box[:2]), fill=False, ec='#ffd000', lw=1.5))
            points = cells.reshape(-1, 2) - 0.5
            axes.scatter(points[:, 0], points[:, 1], s=9, c=colours, edgecolors='white', linewidths=0.3)
            turned = f', {90 * (views[i].rot90 % 4)}°' if views[i].rot90 % 4 else ''
            role = sample['view_roles'][i]
            axes.set_title(f'{role} {i + 1}{", flipped" if views[i].flip else ""}{turned}', fontsize=8)
    figure.savefig(out_png)


def write_inspection(
    samples: Sequence[dict], folder: PathLike, title: str, rules: Sequence[Tuple[str, Sequence[float]]] = ()
) -> Tuple[int, int, List[str]]:
    """Write ``inspection.html`` (one file that needs nothing else) and its pictures as PNG.

    Beside a page of an earlier call, pictures of that call which this one does not write are removed.

    Args:
        samples: As of :func:`check_sample`.
        folder: To write into.
        title: Of the page.
        rules: Of each sample, ``region`` and ``min_cover`` of :func:`check_sample`; none: its defaults.

    Returns:
        How many drawn numbers differ from the pixels, how many were checked, and a sentence for each that differs.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    page_file = folder / 'inspection.html'
    earlier = {path for path in folder.iterdir() if _PICTURE.fullmatch(path.name)} if page_file.is_file() else set()
    parts, faults, total, kinds = [], [], 0, {}
    for n, sample in enumerate(reported(samples, len(samples))):
        name = Path(sample['img_path']).name
        checks = check_sample(sample, *(rules[n] if rules else ()))
        wrong = [f'{name}, {check}' for check in checks if check.differs]
        total += len(checks)
        faults += wrong
        for check in checks:
            _count(kinds, check)
        pictures = [folder / f'{n:03d}_views.png']
        draw_views(sample, str(pictures[0]))
        if shared_pairs(sample):
            pictures.append(folder / f'{n:03d}_pairs.png')
            draw_pairs(sample, str(pictures[1]))
        earlier.difference_update(pictures)
        parts.append(
            f'<h2>{html.escape(name)}</h2><p>{len(wrong)} of {len(checks)} drawn numbers differ from the pixels.</p>'
        )
        if wrong:
            parts.append(f'<ul class="bad">{"".join(f"<li>{html.escape(line)}" for line in wrong[:20])}</ul>')
        parts += [f'<img src="data:image/png;base64,{base64.b64encode(p.read_bytes()).decode()}">' for p in pictures]
    rows = ''.join(f'<tr><td>{html.escape(what)}<td>{bad} of {count}' for what, (bad, count) in kinds.items())
    verdict = f'{len(faults)} of {total} drawn numbers differ from the pixels'
    style = (
        'body{font:15px/1.45 system-ui,sans-serif;max-width:1240px;margin:2em auto;padding:0 '
        '1em;color:#222}img{max-width:100%;display:block}table{border-collapse:collapse}td,th{border:1px solid '
        '#ddd;padding:.2em .7em;text-align:left}.bad{color:#b00020}'
    )
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Inspection</title><style>{style}</style>'
        f'<h1>{html.escape(title)}</h1><p class="{"bad" if faults else "good"}"><b>{verdict}.</b> Boxes, rectangles '
        'and cells are drawn from the geometry that training uses; the pixels are painted, cut, resized, flipped and '
        f'turned without it.</p><table><tr><th>number<th>differ{rows}</table>{"".join(parts)}</html>\n'
    )
    atomic_write_text(page_file, page)
    for path in earlier:
        path.unlink()
    return len(faults), total, faults


def _count(kinds: Dict[str, List[int]], check: Check) -> None:
    what = 'distance of matched cells' if check.what.startswith('distance of matched') else check.what
    entry = kinds.setdefault(what, [0, 0])
    entry[0] += check.differs
    entry[1] += 1
