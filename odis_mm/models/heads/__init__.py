from .alfm import ALFMHead
from .distillation import Center, DistillationHead
from .gtsa import GTSAHead

__all__ = ['ALFMHead', 'Center', 'DistillationHead', 'GTSAHead']
