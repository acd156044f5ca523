"""Metrics on frozen features."""
from .knn import knn_accuracy
from .regions import region_features, region_knn

__all__ = ['knn_accuracy', 'region_features', 'region_knn']
