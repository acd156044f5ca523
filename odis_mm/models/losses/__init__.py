from .distillation import pairwise_cross_entropy, patch_cross_entropy

__all__ = ['pairwise_cross_entropy', 'patch_cross_entropy']
