"""Packages that stand beside this one and would break what it imports."""

import sys
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

_MULTIMODAL = 'mmpretrain.models.multimodal'


def skip_multimodal() -> bool:
    """Leave out mmpretrain's multimodal models where they cannot be imported; returns whether they are left out.

    They derive from helpers that ``transformers`` 5 no longer has, and ``import mmpretrain.models`` fails
    (``TypeError: NoneType takes no arguments``). Nothing here uses them, and upstream has no switch: an empty module
    stands in their place. Must come before that import; does nothing with an older ``transformers``, without it, or
    after the import.
    """
    try:
        major = int(version('transformers').split('.')[0])
    except (PackageNotFoundError, ValueError):
        return False
    if major < 5 or 'mmpretrain.models' in sys.modules:
        return _MULTIMODAL in sys.modules and not hasattr(sys.modules[_MULTIMODAL], '__file__')
    module = ModuleType(_MULTIMODAL, 'Left out by odis_mm: it does not work with transformers 5.')
    vars(module)['__all__'] = []
    sys.modules[_MULTIMODAL] = module
    return True
