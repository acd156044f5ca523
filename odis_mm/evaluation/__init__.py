"""Metrics on frozen features."""

from .frozen import FrozenBackbone
from .knn import LabelledImages, image_features, knn_accuracy, knn_images, labelled_split
from .regions import RegionImages, region_features, region_knn, region_metrics, region_proxy, region_split

__all__ = [
    'FrozenBackbone',
    'LabelledImages',
    'RegionImages',
    'image_features',
    'knn_accuracy',
    'knn_images',
    'labelled_split',
    'region_features',
    'region_knn',
    'region_metrics',
    'region_proxy',
    'region_split',
]
