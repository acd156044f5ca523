from .backbones import ObjectViT
from .data_preprocessor import ViewPreprocessor
from .heads import DistillationHead
from .necks import ProjectionNeck
from .selfsup import ODIS, TeacherStudent

__all__ = ['DistillationHead', 'ODIS', 'ObjectViT', 'ProjectionNeck', 'TeacherStudent', 'ViewPreprocessor']
