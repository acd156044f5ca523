"""Objects for images that have none: found without labels, by a detector, or imported from other tools' annotations."""

from .annotations import load_annotations
from .attention import Attention
from .classic import Classic
from .degrade import degrade
from .detector import Detector
from .finding import find_objects
from .formats import FORMATS
from .found import Found
from .recall import random_boxes, recall_of
from .report import summarise, write_report

__all__ = [
    'FORMATS',
    'Attention',
    'Classic',
    'Detector',
    'Found',
    'degrade',
    'find_objects',
    'load_annotations',
    'random_boxes',
    'recall_of',
    'summarise',
    'write_report',
]
