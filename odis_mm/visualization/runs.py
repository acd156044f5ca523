"""Pictures of a run: its curves, and what its teacher makes of images."""

from typing import Dict, Optional, Sequence, Tuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..datasets.image_io import as_colours
from ..utils.errors import printable

PANELS_PER_ROW = 3
FEW = 25  # points at most that are marked, as a line alone would show a shape that was not measured
# what the axis of a figure says, and its ends where they are fixed
AXES: Dict[str, Tuple[str, Optional[Tuple[float, float]]]] = {
    'lr': ('base rate', None),
    'backbone_lr': ('highest rate of a block', None),
    'grad_norm': ('L2 norm', None),
    'similarity': ('cosine of two views', None),
    'pool_similarity': ('cosine of two views', None),
    'effective_rank': ('directions of the embeddings', None),
    'pool_effective_rank': ('directions of the embeddings', None),
    'teacher_spread': ('0: all cells alike', (0, 1)),
    'teacher_entropy': ('nats', None),
    'rotation_accuracy': ('%', (0, 100)),
    'acc': ('% of the regions', (0, 100)),
    'visible_share': ('share of the images', (0, 1)),
    'overlap': ('share of the images', (0, 1)),
    'health/loss/ln_K': ('ln K', None),
    'health/entropy/ln_K': ('ln K', (0, 1.05)),
    'health/KL': ('nats', None),
    'health/EMA_distance': ('|s - t| / |t|', None),
    'health/prototypes_in_use': ('perplexity', None),
    'health/feature_rank': ("directions of the teacher's features", None),
    'health/feature_spread': ('share of the energy', None),
    'health/weight_growth': ('x start', None),
    'health/empty_masks': ('share of the objects', (0, 1)),
    'health/data_wait': ('share of the time', (0, 1)),
}
LEVELS: Dict[str, Tuple[float, str]] = {
    'effective_rank': (1, 'collapsed'),
    'pool_effective_rank': (1, 'collapsed'),
    'rotation_accuracy': (25, 'chance'),
    'visible_share': (0.5, 'warned of below'),
    'health/loss/ln_K': (1, 'uniform'),
    'health/entropy/ln_K': (1, 'uniform'),
}
# logged as well, and no curve: where the run stood, its speed, and what is there under another name
LEFT_OUT = ('step', 'iter', 'epoch', 'time', 'data_time', 'images/s', 'memory', 'data_wait')
TWICE = {'health/loss': 'loss', 'health/similarity': 'similarity', 'health/gradient_norm': 'grad_norm'}


def draw_curves(records: Sequence[dict], out_png: str, title: str, good: Optional[Dict[str, str]] = None) -> np.ndarray:
    """Plot the losses, the method's figures, the learning rate and the health figures over the iterations, and write a
    PNG.

    Args:
        records: Scalars by name, each record with its ``step`` (iteration), in order of time: of two for one step,
            those of a resumed run, the later counts.
        title: Name of the run.
        good: Good ranges by name, such as '> 0.1'.

    Returns:
        The picture, uint8 [h, w, 3].
    """
    curves = curves_of(records)
    rows = max(1, -(-len(curves) // PANELS_PER_ROW))
    figure = Figure(figsize=(4 * PANELS_PER_ROW, 2.6 * rows + 0.4), dpi=90, layout='constrained')
    canvas = FigureCanvasAgg(figure)
    panels = figure.subplots(rows, PANELS_PER_ROW, squeeze=False).flat
    last = max((max(points) for points in curves.values()), default=1)
    for (name, points), ax in zip(curves.items(), panels):
        ax.plot(list(points), list(points.values()), lw=1.2, marker='.' if len(points) <= FEW else None)
        label, ends = AXES.get(name, ('', None))
        if name in LEVELS:
            value, meaning = LEVELS[name]
            ax.axhline(value, color='gray', ls='--', lw=1, label=meaning)
            ax.legend(fontsize=7)
        if ends:
            ax.set_ylim(*ends)
        fine = (good or {}).get(name, '')
        ax.set_title(f'{name} (good {fine})' if fine else name, fontsize=9)
        low, high = ax.get_ylim()
        if fine[:2] in ('> ', '< ') and low < float(fine[2:]) < high:  # further away it would flatten the curve
            ax.axhline(float(fine[2:]), color='tab:green', ls=':', lw=1)
        ax.set_xlim(0, last)
        ax.set_xlabel('iteration', fontsize=8)
        ax.set_ylabel(label, fontsize=8)
        ax.tick_params(labelsize=7)
        ax.grid(alpha=0.3)
    for ax in list(panels):
        ax.set_axis_off()
    figure.suptitle(printable(title), fontsize=10, parse_math=False)  # of a folder, in whose name $ begins no formula
    return _written(figure, canvas, out_png)


def curves_of(records: Sequence[dict]) -> Dict[str, Dict[int, float]]:
    """Return value by step of every figure that has a curve, in the order of the panels."""
    found: Dict[str, Dict[int, float]] = {}
    for record in records:
        for name, value in record.items():
            if name not in LEFT_OUT and ('/' not in name or name.startswith(('health/', 'coco/'))):
                found.setdefault(name, {})[record['step']] = value
    # a line needs two points; of two health figures the log tells as much
    shown = [name for name in found if len(found[name]) > 1 + ('/' in name) and TWICE.get(name) not in found]
    return {name: dict(sorted(found[name].items())) for name in sorted(shown, key=_place)}


def _place(name: str) -> int:
    if name.startswith('loss'):
        return 0
    return 3 if name.startswith('health/') else 2 if name in ('lr', 'backbone_lr', 'grad_norm') else 1


def draw_maps(
    views: Sequence[np.ndarray],
    values: np.ndarray,
    out_png: str,
    *,
    meaning: str,
    unit: str,
    limits: Tuple[float, float],
    masks: Optional[np.ndarray] = None,
    marked: Optional[Tuple[int, int]] = None,
) -> np.ndarray:
    """Show views, the patches of their objects, and a value for each patch, and write a PNG.

    Args:
        views: n views, uint8 [h, w, C].
        values: float [n, rows, columns]; NaN: none, the view shows there.
        meaning: Of the values, for the axis.
        unit: For the colour bar.
        limits: Values of the ends of the colour bar; those above are marked by its tip.
        masks: Patches of the object that the values depend on, bool [n, rows, columns]; None: of the whole image.
        marked: Row and column of the patch that the values refer to, if they refer to one.

    Returns:
        The picture, uint8 [h, w, 3].
    """
    from .views import shade_view

    rows = ['view', *(["object's patches"] if masks is not None else []), meaning]
    figure = Figure(figsize=(1.8 * len(views), 0.2 + 1.8 * len(rows)), dpi=90, layout='constrained')
    canvas = FigureCanvasAgg(figure)
    grid = figure.subplots(len(rows), len(views), squeeze=False)
    image = None
    for column, (view, cells) in enumerate(zip(views, values)):
        height, width = view.shape[:2]
        grid[0, column].imshow(as_colours(view))
        if masks is not None:
            grid[1, column].imshow(shade_view(view, masks[column]), interpolation='nearest')
        grid[-1, column].imshow(view.mean(-1) / 2, cmap='gray', vmin=0, vmax=255)
        image = grid[-1, column].imshow(
            cells, extent=(-0.5, width - 0.5, height - 0.5, -0.5), cmap='inferno', vmin=limits[0], vmax=limits[1]
        )
        if marked is not None:
            side = height / len(cells), width / cells.shape[1]
            corner = (marked[1] * side[1] - 0.5, marked[0] * side[0] - 0.5)
            for row in (0, -1):
                grid[row, column].add_patch(Rectangle(corner, side[1], side[0], fill=False, lw=1.5, ec='#00d060'))
    for row, text in enumerate(rows):
        grid[row, 0].set_ylabel(text, fontsize=9)
    for ax in grid.flat:
        ax.set_xticks([])
        ax.set_yticks([])
    extend = 'max' if (values > limits[1] + 1e-3 * abs(limits[1])).any() else 'neither'
    bar = figure.colorbar(image, ax=grid[-1].tolist(), shrink=0.9, extend=extend)
    bar.set_label(unit, fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return _written(figure, canvas, out_png)


def _written(figure: Figure, canvas: FigureCanvasAgg, out_png: str) -> np.ndarray:
    figure.savefig(out_png)  # draws on the canvas
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
