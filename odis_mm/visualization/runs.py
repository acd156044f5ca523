"""Pictures of a run: its curves, and what its teacher makes of images."""

from typing import Dict, Optional, Sequence, Tuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ..datasets.image_io import as_colours

PANELS_PER_ROW = 3


def draw_curves(
    records: Sequence[dict], out_png: str, title: str, levels: Optional[Dict[str, Tuple[float, str]]] = None
) -> np.ndarray:
    """Plot every logged loss, the learning rate and the health figures over the iterations, and write a PNG.

    Args:
        records: Scalars by name, each record with its ``step`` (iteration), in order of time.
        title: Name of the run.
        levels: Lines to draw beside a curve: name to (value, what it means).

    Returns:
        The picture, uint8 [h, w, 3].
    """
    names = [name for name in dict.fromkeys(key for record in records for key in record) if _shown(name, records)]
    rows = max(1, -(-len(names) // PANELS_PER_ROW))
    figure = Figure(figsize=(4 * PANELS_PER_ROW, 2.6 * rows + 0.4), dpi=90, layout='constrained')
    canvas = FigureCanvasAgg(figure)
    panels = figure.subplots(rows, PANELS_PER_ROW, squeeze=False).flat
    for name, ax in zip(names, panels):
        points = [(record['step'], record[name]) for record in records if name in record]
        ax.plot(*zip(*points), lw=1.2)
        if levels and name in levels:
            value, meaning = levels[name]
            ax.axhline(value, color='gray', ls='--', lw=1, label=meaning)
            ax.legend(fontsize=7)
        ax.set_title(name, fontsize=9)
        ax.set_xlabel('iteration', fontsize=8)
        ax.tick_params(labelsize=7)
        ax.grid(alpha=0.3)
    for ax in list(panels):
        ax.set_axis_off()
    figure.suptitle(title, fontsize=10)
    return _written(figure, canvas, out_png)


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
        values: float [n, rows, columns].
        meaning: Of the values, for the axis.
        unit: For the colour bar.
        limits: Values of the ends of the colour bar.
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
        grid[-1, column].imshow(view.mean(-1), cmap='gray')
        image = grid[-1, column].imshow(
            cells,
            extent=(-0.5, width - 0.5, height - 0.5, -0.5),
            cmap='inferno',
            alpha=0.7,
            vmin=limits[0],
            vmax=limits[1],
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
    figure.colorbar(image, ax=grid[-1].tolist(), label=unit, shrink=0.8)
    return _written(figure, canvas, out_png)


def _shown(name: str, records: Sequence[dict]) -> bool:
    wanted = 'loss' in name or name in ('lr', 'grad_norm', 'visible_share') or name.startswith(('health/', 'coco/'))
    return wanted and sum(name in record for record in records) > 1


def _written(figure: Figure, canvas: FigureCanvasAgg, out_png: str) -> np.ndarray:
    figure.savefig(out_png)  # draws on the canvas
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
