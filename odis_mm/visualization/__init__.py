"""Pictures of what the data pipeline makes, of what a run has learned, and of how it went."""

from .runs import draw_attention, draw_curves
from .views import draw_views, shade_view

__all__ = ['draw_attention', 'draw_curves', 'draw_views', 'shade_view']
