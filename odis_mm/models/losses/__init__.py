"""Losses as functions of tensors."""

from .coding_length import coding_length, effective_rank, second_moment
from .dense import correspondence_similarity, crop_similarity, overlap_weight
from .distillation import pairwise_cross_entropy, patch_cross_entropy
from .local_cells import aligned_cells, with_context

__all__ = [
    'aligned_cells',
    'coding_length',
    'correspondence_similarity',
    'crop_similarity',
    'effective_rank',
    'overlap_weight',
    'pairwise_cross_entropy',
    'patch_cross_entropy',
    'second_moment',
    'with_context',
]
