"""What mmdet needs for a plain ViT; imported with mmdet only. The data pieces alone need mmcv's compiled ops."""

from importlib.util import find_spec

from .init_check import DetectorInit
from .layer_decay import DetectorLayerDecay
from .pyramid import ViTFeaturePyramid, ViTSimplePyramid, pyramid_strides

__all__ = ['DetectorInit', 'DetectorLayerDecay', 'ViTFeaturePyramid', 'ViTSimplePyramid', 'pyramid_strides']

if find_spec('mmcv._ext') is not None:
    from .data import (
        ChannelsPreprocessor,
        DemoDetectionDataset,
        DetectionDataset,
        LoadBoxesAndMasks,
        LoadDetectionImage,
    )
    from .drawing import BoxVisualizer

    __all__ += [
        'BoxVisualizer',
        'ChannelsPreprocessor',
        'DemoDetectionDataset',
        'DetectionDataset',
        'LoadBoxesAndMasks',
        'LoadDetectionImage',
    ]
