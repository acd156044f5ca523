from .conv import ConvNeck
from .projection import ProjectionNeck, PrototypeLayer

__all__ = ['ConvNeck', 'ProjectionNeck', 'PrototypeLayer']
