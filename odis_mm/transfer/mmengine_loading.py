"""mmengine's way of reading checkpoints, closed to code while this package trains or tests."""

import os.path as osp
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Iterator

import torch
from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as mmengine_checkpoint

from ..utils.errors import CheckpointError
from .checkpoint import restore


@contextmanager
def closed_to_code() -> Iterator[None]:
    """Have mmengine, and so mmpretrain and mmdet, read every checkpoint as data while the block runs.

    That is ``resume``, ``load_from``, ``init_cfg``, files and URLs. The forks of mmengine fall back, with a warning, to
    running whatever a file holds; all versions do so with what they download. ``odis_mm.apis`` trains and tests in this
    block; outside of it mmengine is as it was. mmengine has one registry for loaders of names without a scheme (files),
    which is used here; for downloads and clusters' storages it has none, so two names of its module are replaced for
    the time: what has no other way upstream, and nothing else.

    Needs torch >= 2.5, which can be told what else is harmless; with an older one it changes nothing.
    """
    if not hasattr(torch.serialization, 'safe_globals'):
        yield
        return
    schemes, replaced = CheckpointLoader._schemes, {}
    CheckpointLoader._schemes = dict(schemes)
    CheckpointLoader.register_scheme(prefixes='', loader=load_local, force=True)
    load = mmengine_checkpoint.load_url
    if isinstance(load, _Download):  # a block within a block
        load = load.load
    for name, value in (('load_url', _Download(load)), ('_safe_torch_load', _restore)):  # the second is the forks'
        if hasattr(mmengine_checkpoint, name):
            replaced[name] = getattr(mmengine_checkpoint, name)
            setattr(mmengine_checkpoint, name, value)
    try:
        yield
    finally:
        CheckpointLoader._schemes = schemes
        for name, value in replaced.items():
            setattr(mmengine_checkpoint, name, value)


def load_local(filename: str, map_location='cpu') -> dict:
    """Load a local checkpoint for mmengine: tensors, plain values and mmengine's own log buffers, never code.

    Raises:
        CheckpointError: the file is missing, damaged, or would run code.
    """
    path = Path(osp.expanduser(filename))
    if not path.is_file():
        raise CheckpointError(f'no checkpoint {str(path)!r}.')
    return restore(path, f'checkpoint {path}', map_location)


class _Download:
    """mmengine's ``load_url``, closed to code."""

    def __init__(self, load: Callable[..., dict]):
        self.load = load

    def __call__(self, url: str, **kwargs) -> dict:
        return restore(lambda: self.load(url, **{**kwargs, 'weights_only': True}), f'checkpoint {url}')


def _restore(file, map_location=None, weights_only=None) -> dict:
    return restore(file, f'checkpoint {file}' if isinstance(file, (str, Path)) else 'the checkpoint', map_location)
