from .distillation import Center, DistillationHead

__all__ = ['Center', 'DistillationHead']
