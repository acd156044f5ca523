"""Images with objects: datasets, reading, and the transforms that make views of them."""

from . import transforms
from .demo_objects import DemoObjectDataset
from .draws import Draw, DrawnDataset, NumberedSampler, number_draws, object_datasets
from .image_io import BadImageError, LoadObjectImage, read_image
from .objects import ObjectDataset, segmentation_to_mask
from .samplers import EpochSampler

__all__ = [
    'BadImageError',
    'DemoObjectDataset',
    'Draw',
    'DrawnDataset',
    'EpochSampler',
    'LoadObjectImage',
    'NumberedSampler',
    'ObjectDataset',
    'number_draws',
    'object_datasets',
    'read_image',
    'segmentation_to_mask',
    'transforms',
]
