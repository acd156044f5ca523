"""Images with objects: datasets, reading, and the transforms that make views of them."""
from .image_io import LoadObjectImage, read_image
from .objects import ObjectDataset, segmentation_to_mask

__all__ = ['LoadObjectImage', 'ObjectDataset', 'read_image', 'segmentation_to_mask']
