"""Images with objects: datasets, reading, and the transforms that make views of them."""

from . import transforms
from .demo_objects import DemoObjectDataset
from .image_io import BadImageError, LoadObjectImage, read_image
from .objects import ObjectDataset, segmentation_to_mask
from .samplers import EpochSampler

__all__ = [
    'BadImageError',
    'DemoObjectDataset',
    'EpochSampler',
    'LoadObjectImage',
    'ObjectDataset',
    'read_image',
    'segmentation_to_mask',
    'transforms',
]
