"""Heads: predictor, centers, temperatures and losses of each method."""

from .alfm import ALFMHead
from .distillation import Center, DistillationHead, sinkhorn_knopp
from .embedding import EmbeddingHead
from .gtsa import GTSAHead

__all__ = ['ALFMHead', 'Center', 'DistillationHead', 'EmbeddingHead', 'GTSAHead', 'sinkhorn_knopp']
