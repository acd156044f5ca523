from .distillation import Center, DistillationHead
from .gtsa import GTSAHead

__all__ = ['Center', 'DistillationHead', 'GTSAHead']
