"""Configs made for a data set: what a person would write by hand after looking at it."""

from .detector import SMALL_DETECTORS, Content, anchors, backbone_settings, detector_config, fitting_size, read_content
from .pretraining import METHODS, pretraining_config

__all__ = [
    'METHODS',
    'SMALL_DETECTORS',
    'Content',
    'anchors',
    'backbone_settings',
    'detector_config',
    'fitting_size',
    'pretraining_config',
    'read_content',
]
