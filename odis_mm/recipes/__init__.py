"""Configs made for a data set: what a person would write by hand after looking at it."""

from .detector import Content, anchors, backbone_settings, detector_config, read_content
from .pretraining import METHODS, pretraining_config

__all__ = [
    'METHODS',
    'Content',
    'anchors',
    'backbone_settings',
    'detector_config',
    'pretraining_config',
    'read_content',
]
