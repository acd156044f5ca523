"""Geometry of views: plain data and pure functions, no pixels and no randomness."""
from .geometry import (
                       View,
                       ViewBatch,
                       ViewPairs,
                       box_patch_mask,
                       boxes_from_view,
                       boxes_to_view,
                       mask_area_in_crops,
                       mask_patch_mask,
                       orient,
                       pair_intersections,
                       patch_grid,
                       points_from_view,
                       points_to_view,
                       stack_views,
                       summed_area,
                       teacher_student_pairs,
                       turn_squares,
)

__all__ = [
    'View', 'ViewBatch', 'ViewPairs', 'box_patch_mask', 'boxes_from_view', 'boxes_to_view', 'mask_area_in_crops',
    'mask_patch_mask', 'orient', 'pair_intersections', 'patch_grid', 'points_from_view', 'points_to_view', 'stack_views',
    'summed_area', 'teacher_student_pairs', 'turn_squares'
]
