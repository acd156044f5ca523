"""odis_mm: self-supervised pretraining of Vision Transformers for detection, as a plugin of OpenMMLab.

Importing it registers datasets, transforms, models and hooks in mmpretrain's registries, and, where mmdet is installed,
the detector pieces in mmdet's. It needs no compiled mmcv ops.
"""

import os
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .utils.neighbours import skip_multimodal
from .version import __version__

_LAZY = {
    'extract_object_features': 'odis_mm.evaluation.object_features',
    'finetune': 'odis_mm.tasks',
    'predict': 'odis_mm.tasks',
    'pretrain': 'odis_mm.tasks',
}

# OpenMP's threads wait by spinning: where other processes want the same cores, that takes most of a training's time.
# Read when torch is loaded.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

__all__ = ['__version__', 'extract_object_features', 'finetune', 'predict', 'pretrain', 'register']


def register() -> None:
    """Register everything with mmpretrain and mmdet; a second call does nothing. Called by ``import odis_mm``."""
    from .utils.noise import import_quietly

    import_quietly('odis_mm.datasets', 'odis_mm.models', 'odis_mm.engine')
    if find_spec('mmdet') is not None:  # costs little: mmdet's registries, none of its models
        import_quietly('odis_mm.detection')


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def _is_command() -> bool:
    """Return whether this process is the command line, which imports no more than its command needs."""
    if sys.argv[:1] == ['-m']:  # what Python sets while it looks for the module that it is to run
        words = sys.orig_argv
        return '-m' in words and words[words.index('-m') + 1] in ('odis_mm', 'odis_mm.doctor')
    return Path((sys.argv or [''])[0]).stem in ('odis-mm', 'torchrun')  # tools/torchrun.py says who did not come


skip_multimodal()
if not _is_command():
    register()
