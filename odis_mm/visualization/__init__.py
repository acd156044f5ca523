"""Pictures of what the data pipeline makes, of what a run has learned, and of how it went."""

from .inspection import check_sample, draw_pairs, write_inspection
from .runs import draw_curves, draw_maps
from .views import draw_views, shade_view

__all__ = ['check_sample', 'draw_curves', 'draw_maps', 'draw_pairs', 'draw_views', 'shade_view', 'write_inspection']
