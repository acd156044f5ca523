"""Models of pretraining, in mmpretrain's parts: backbones, necks, heads, losses, and the methods made of them."""

from .backbones import ObjectViT
from .data_preprocessor import ViewPreprocessor
from .heads import ALFMHead, DistillationHead, EmbeddingHead, GTSAHead
from .necks import ConvNeck, GlobalLocalNeck, ProjectionNeck
from .selfsup import ALFM, GTSA, ODIS, TeacherStudent

__all__ = [
    'ALFM',
    'ALFMHead',
    'ConvNeck',
    'DistillationHead',
    'EmbeddingHead',
    'GTSA',
    'GTSAHead',
    'GlobalLocalNeck',
    'ODIS',
    'ObjectViT',
    'ProjectionNeck',
    'TeacherStudent',
    'ViewPreprocessor',
]
