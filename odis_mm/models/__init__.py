from .backbones import ObjectViT
from .data_preprocessor import ViewPreprocessor
from .heads import DistillationHead, GTSAHead
from .necks import ConvNeck, ProjectionNeck
from .selfsup import GTSA, ODIS, TeacherStudent

__all__ = ['ConvNeck', 'DistillationHead', 'GTSA', 'GTSAHead', 'ODIS', 'ObjectViT', 'ProjectionNeck', 'TeacherStudent', 'ViewPreprocessor']
