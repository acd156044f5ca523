"""odis_mm: self-supervised pretraining of Vision Transformers for detection, as a plugin of OpenMMLab.

Importing it registers datasets, transforms, models and hooks in mmpretrain's registries, and, where mmdet is installed, the detector pieces in
mmdet's. It needs no compiled mmcv ops.
"""
from importlib.util import find_spec

from . import datasets, models  # noqa: F401
from .engine import amp, hooks, loops, optim, sharding  # noqa: F401
from .features import extract_object_features
from .version import __version__

if find_spec('mmdet') is not None:  # costs little: mmdet's registries, none of its models
    from . import detection  # noqa: F401

__all__ = ['__version__', 'extract_object_features']
