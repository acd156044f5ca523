"""What mmengine's own checkpoints need beyond tensors, allowed by name for ``torch.load(weights_only=True)``.

torch >= 2.6 loads with ``weights_only=True``. A checkpoint of a mmengine run also pickles its logged histories
(``HistoryBuffer`` over numpy arrays), which upstream mmengine 0.10.7 never allowed: it cannot resume its own runs.
Exactly these types are allowed here, when ``odis_mm`` is imported; a file that wants anything else is still refused.
With them, ``argparse.Namespace``: a plain bag of settings, in every training checkpoint of DINO, iBOT and MAE.
"""

import argparse

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

_STATISTICS = ('min', 'max', 'current', 'mean')


class UnsafeCheckpoint(ValueError):
    """A file names something that no checkpoint of mmengine needs."""


def history_buffer_method(owner: type, name: str):
    """Stand in for ``getattr``, by which pickle stores methods of a class: those of HistoryBuffer, nothing else."""
    if owner is not HistoryBuffer or name not in _STATISTICS:
        wanted = f'{getattr(owner, "__name__", owner)}.{name}'
        raise UnsafeCheckpoint(
            f'a checkpoint may name the statistics {", ".join(_STATISTICS)} of HistoryBuffer only, not {wanted}'
        )
    return getattr(HistoryBuffer, name)


def allow_mmengine_histories() -> None:
    """Add the types to torch's list; does nothing on torch < 2.6, whose mmengine loads do not restrict pickles."""
    if not hasattr(torch.serialization, 'safe_globals'):
        return
    core = np._core if hasattr(np, '_core') else np.core
    allowed = [
        argparse.Namespace,
        HistoryBuffer,
        np.ndarray,
        np.dtype,
        type(np.dtype('f8')),
        type(np.dtype('f4')),
        type(np.dtype('i8')),
    ]
    # numpy renamed its core module in 2.0: files written under either name are read under both
    for module in ('numpy._core.multiarray', 'numpy.core.multiarray'):
        for function in ('_reconstruct', 'scalar'):
            allowed.append((getattr(core.multiarray, function), f'{module}.{function}'))
    allowed += [(history_buffer_method, 'builtins.getattr'), (history_buffer_method, '__builtin__.getattr')]
    torch.serialization.add_safe_globals(allowed)
