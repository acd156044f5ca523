"""Backbones: a ViT whose [OBJ] token can be told an object."""

from .object_vit import ObjectViT

__all__ = ['ObjectViT']
