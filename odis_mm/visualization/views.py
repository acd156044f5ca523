"""Pictures of what the data pipeline makes: for the eye, from the very numbers that training uses."""

from typing import Optional

import cv2
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Polygon, Rectangle

from ..datasets import segmentation_to_mask
from ..datasets.image_io import as_colours
from ..structures import boxes_to_view, points_from_view
from ..utils.errors import AnnotationError

_GLOBAL, _LOCAL, _TARGET, _OTHER, _MIM = '#ff8c00', '#1e90ff', '#00d060', '#ffe94d', '#e0218a'


def _enlarge(mask: np.ndarray, size) -> np.ndarray:
    """A patch mask [rows, columns] as pixels [h, w]."""
    return mask.repeat(size[0] // mask.shape[0], 0).repeat(size[1] // mask.shape[1], 1)


def shade_view(pixels: np.ndarray, patch_mask: np.ndarray, mim_mask: Optional[np.ndarray] = None) -> np.ndarray:
    """Return a view uint8 [h, w, C] as colours [h, w, 3]: dark outside its object's patches, tinted where a MIM mask
    is."""
    out = (as_colours(pixels) if pixels.ndim == 3 else pixels).astype(np.float32)
    out[~_enlarge(patch_mask, pixels.shape)] *= 0.35
    if mim_mask is not None:
        tint = np.array([int(_MIM[i : i + 2], 16) for i in (1, 3, 5)], np.float32)
        masked = _enlarge(mim_mask, pixels.shape)
        out[masked] = 0.4 * out[masked] + 0.6 * tint
    return out.astype(np.uint8)


def _frame(panel, patch_mask: np.ndarray, size) -> None:
    """Dots around the patches of a mask [rows, columns], seen on dark and on light pixels."""
    padded = np.pad(patch_mask, 1)
    height, width = size[0] / patch_mask.shape[0], size[1] / patch_mask.shape[1]
    rows, columns = np.nonzero(padded[1:] != padded[:-1])  # an edge below row - 1, from column - 1 to column
    flat = [[((c - 1) * width, r * height), (c * width, r * height)] for r, c in zip(rows, columns)]
    rows, columns = np.nonzero(padded[:, 1:] != padded[:, :-1])
    upright = [[(c * width, (r - 1) * height), (c * width, r * height)] for r, c in zip(rows, columns)]
    edges = np.array(flat + upright).reshape(-1, 2, 2) - 0.5
    for colour, style in (('black', '-'), ('white', (0, (1, 1)))):
        panel.add_collection(LineCollection(edges, colors=colour, linestyles=[style], lw=1.4, clip_on=False))


def _outline(segmentation, height: int, width: int) -> list:
    """Rings [n, 2] around a segmentation, in pixels of the image; none of one that cannot be read."""
    try:
        mask = segmentation_to_mask(segmentation, height, width)
    except AnnotationError:
        return []
    if not isinstance(segmentation, dict):
        return [np.reshape(ring, (-1, 2)).astype(float) for ring in segmentation]
    # OpenCV follows the middles of the outermost pixels: half pixels, so that they lie near the border
    large = mask.astype(np.uint8).repeat(2, 0).repeat(2, 1)
    rings, _ = cv2.findContours(large, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    return [(ring[:, 0] + 0.5) / 2 for ring in rings]


def draw_views(sample: dict, out_png: str) -> np.ndarray:
    """Draw the original image with its objects and crops, then each view with its patch mask and MIM mask, as one PNG.

    A view is darkened where a patch does not belong to the object and tinted where it is masked for the student. The
    target's box is carried into each view by the geometry, so that it can be compared with what the pixels show.

    Args:
        sample: Results of the pipeline before packing: ``img``, ``views``, ``view_roles``, ``pixels``; of an
            object-aware one also ``bboxes``, ``target``, ``patch_masks``, ``object_visible``, and ``masks``,
            ``mim_masks`` if there are any.
        out_png: File to write.

    Returns:
        The picture, uint8 [h, w, 3].
    """
    views, roles, target = sample['views'], sample['view_roles'], sample.get('target', -1)
    masks = sample.get('patch_masks', [np.ones((1, 1), bool)] * len(views))
    mims = list(sample.get('mim_masks', [])) + [None] * len(views)
    indices = [[i for i, r in enumerate(roles) if r == role] for role in ('global', 'local')]
    columns = max(3, -(-len(indices[1]) // 2))
    height = 6.7 if indices[1] else 4.2
    figure = Figure(figsize=(5 + 1.7 * columns, height), dpi=100, layout='constrained')
    canvas = FigureCanvasAgg(figure)
    left, right = figure.subfigures(1, 2, width_ratios=[5, 1.7 * columns])

    axes = left.subplots()
    axes.imshow(as_colours(sample['img']))
    for view, role in zip(views, roles):
        x, y, w, h = view.crop
        axes.add_patch(
            Rectangle(
                (x - 0.5, y - 0.5),
                w,
                h,
                fill=False,
                lw=2 if role == 'global' else 1,
                ec=_GLOBAL if role == 'global' else _LOCAL,
            )
        )
        corner = points_from_view(np.zeros(2), view) - 0.5  # of the view's own top left: shows flips and turns
        axes.plot(*corner, 'o', ms=5, color=_GLOBAL if role == 'global' else _LOCAL)
    box = None if target < 0 else np.asarray(sample['bboxes'][target], np.float64)
    others = [] if box is None else np.delete(np.asarray(sample['bboxes'], np.float64), target, 0)
    for x1, y1, x2, y2 in others:
        axes.add_patch(Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, fill=False, lw=0.8, ec=_OTHER))
    rings = []
    if box is not None:
        rings = _outline(sample['masks'][target], *sample['img'].shape[:2]) if sample.get('masks') is not None else []
        for ring in rings:
            axes.add_patch(Polygon(ring - 0.5, fill=False, lw=1.5, ec=_TARGET, ls=':'))
        axes.add_patch(Rectangle(box[:2] - 0.5, *(box[2:] - box[:2]), fill=False, lw=2, ec=_TARGET))
    what = 'no target object; ' if box is None else f'target: object {target}; '
    what = what if 'target' in sample else ''
    axes.set_title(f'{what}{len(views)} crops', fontsize=9)
    axes.set_axis_off()

    rows = -(-len(indices[1]) // columns)
    top, bottom = right.subfigures(2, 1, height_ratios=[1.6, rows]) if rows else (right, None)
    panels = list(zip(indices[0], top.subplots(1, len(indices[0]), squeeze=False).flat))
    if rows:
        grid = bottom.subplots(rows, columns, squeeze=False)
        for panel in grid.flat:
            panel.set_axis_off()
        panels += list(zip(indices[1], grid.flat))
    for i, panel in panels:
        panel.set_axis_off()
        panel.imshow(shade_view(sample['pixels'][i], masks[i], mims[i]), interpolation='nearest')
        if not masks[i].all():
            _frame(panel, masks[i], sample['pixels'][i].shape)
        if box is not None:
            x1, y1, x2, y2 = boxes_to_view(box, views[i], clip=True) - 0.5
            if x2 > x1 and y2 > y1:
                panel.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, lw=1.5, ec=_TARGET))
        seen = '' if sample.get('object_visible', [True] * len(views))[i] else ', not visible'
        turned = f', {90 * (views[i].rot90 % 4)}°' if views[i].rot90 % 4 else ''
        masked = '' if mims[i] is None or not mims[i].any() else f', {mims[i].mean():.0%} masked'
        panel.set_title(f'{roles[i]} {i + 1}{", flipped" if views[i].flip else ""}{turned}{seen}{masked}', fontsize=8)
    legend = (
        (True, Line2D([], [], color=_GLOBAL, lw=2, label='crop of a global view')),
        (rows, Line2D([], [], color=_LOCAL, lw=1, label='crop of a local view')),
        (True, Line2D([], [], color='gray', marker='o', ms=5, ls='', label='corner that is the top left of its view')),
        (box is not None, Line2D([], [], color=_TARGET, lw=2, label='box of the target')),
        (rings, Line2D([], [], color=_TARGET, lw=1.5, ls=':', label='outline of the target')),
        (len(others), Line2D([], [], color=_OTHER, lw=0.8, label='boxes of other objects')),
        (
            not all(map(np.all, masks)),
            Patch(fc='#404040', ec='white', ls=':', label='dark, outside of the dots: patches that [OBJ] does not see'),
        ),
        (any(map(np.any, mims)), Patch(color=_MIM, alpha=0.6, label='patches masked for the student')),
    )
    handles = [handle for drawn, handle in legend if drawn]
    figure.legend(handles=handles, loc='outside lower center', ncols=3, fontsize=8)
    figure.savefig(out_png)
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
