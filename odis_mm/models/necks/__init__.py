"""Necks: from tokens or maps to what the heads compare."""

from .conv import ConvNeck
from .global_local import GlobalLocalNeck
from .projection import ProjectionNeck, PrototypeLayer

__all__ = ['ConvNeck', 'GlobalLocalNeck', 'ProjectionNeck', 'PrototypeLayer']
