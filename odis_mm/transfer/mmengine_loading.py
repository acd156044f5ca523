"""mmengine's way of reading checkpoints, closed to code."""

import os.path as osp
from pathlib import Path

import torch
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as mmengine_checkpoint

from ..utils.errors import CheckpointError
from .checkpoint import restore

_load_url = mmengine_checkpoint.load_url


def refuse_code() -> None:
    """Has mmengine, and so mmpretrain and mmdet, read every checkpoint as data: ``resume``, ``load_from``, ``init_cfg``, files and URLs.

    The forks of mmengine fall back, with a warning, to running whatever a file holds; all versions do so with what they download.
    Called when ``odis_mm`` is imported. Needs torch >= 2.5, which can be told what else is harmless.
    """
    if not hasattr(torch.serialization, 'safe_globals'):
        return
    CheckpointLoader.register_scheme(prefixes='', loader=load_local, force=True)
    mmengine_checkpoint._safe_torch_load = _restore  # of the forks: clusters' storages, model zoos
    mmengine_checkpoint.load_url = load_url


def load_local(filename: str, map_location=None) -> dict:
    """Loader of local checkpoints for mmengine: tensors, plain values and mmengine's own log buffers, never code.

    Raises:
        CheckpointError: the file is missing, damaged, or would run code.
    """
    path = Path(osp.expanduser(filename))
    if not path.is_file():
        raise CheckpointError(f'no checkpoint {str(path)!r}.')
    return restore(path, f'checkpoint {path}', map_location)


def load_url(url: str, **kwargs) -> dict:
    """The same for downloads."""
    return restore(lambda: _load_url(url, **{**kwargs, 'weights_only': True}), f'checkpoint {url}')


def _restore(file, map_location=None, weights_only=None) -> dict:
    return restore(file, f'checkpoint {file}' if isinstance(file, (str, Path)) else 'the checkpoint', map_location)
