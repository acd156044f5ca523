"""Metrics on frozen features."""
from .frozen import FrozenBackbone
from .knn import LabelledImages, image_features, knn_accuracy, knn_images, labelled_split
from .regions import region_features, region_knn

__all__ = [
    'FrozenBackbone', 'LabelledImages', 'image_features', 'knn_accuracy', 'knn_images', 'labelled_split', 'region_features', 'region_knn'
]
