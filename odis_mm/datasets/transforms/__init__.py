"""View sampling, rendering, photometrics, masks of masked image modelling, packing."""

from ..workers import single_thread_worker
from .mim import BlockMasks
from .packing import PackViews, collate_views, mask_positions
from .pair_views import SamplePairViews
from .photometric import PhotometricViews
from .views import RenderViews, SampleViews, render_view

__all__ = [
    'BlockMasks',
    'PackViews',
    'PhotometricViews',
    'RenderViews',
    'SamplePairViews',
    'SampleViews',
    'collate_views',
    'mask_positions',
    'render_view',
    'single_thread_worker',
]
