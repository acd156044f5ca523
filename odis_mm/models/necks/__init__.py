from .projection import ProjectionNeck, PrototypeLayer

__all__ = ['ProjectionNeck', 'PrototypeLayer']
