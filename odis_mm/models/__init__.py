from .backbones import ObjectViT
from .data_preprocessor import ViewPreprocessor
from .heads import ALFMHead, DistillationHead, GTSAHead
from .necks import ConvNeck, GlobalLocalNeck, ProjectionNeck
from .selfsup import ALFM, GTSA, ODIS, TeacherStudent

__all__ = [
    'ALFM',
    'ALFMHead',
    'ConvNeck',
    'DistillationHead',
    'GTSA',
    'GTSAHead',
    'GlobalLocalNeck',
    'ODIS',
    'ObjectViT',
    'ProjectionNeck',
    'TeacherStudent',
    'ViewPreprocessor',
]
