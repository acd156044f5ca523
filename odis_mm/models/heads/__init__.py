from .alfm import ALFMHead
from .distillation import Center, DistillationHead, sinkhorn_knopp
from .gtsa import GTSAHead

__all__ = ['ALFMHead', 'Center', 'DistillationHead', 'GTSAHead', 'sinkhorn_knopp']
