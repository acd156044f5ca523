from .object_vit import ObjectViT

__all__ = ['ObjectViT']
