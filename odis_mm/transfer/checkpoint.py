"""Reading checkpoint files without running code from them, and writing files that are whole or not there."""
import errno
import os
import pickle
import re
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, Callable, Dict, Optional, Union

import torch
from torch import Tensor

from .safe_globals import UnsafeCheckpoint, allow_mmengine_histories

PathLike = Union[str, os.PathLike]


# where libraries keep the weights in a file, best first: DINO, iBOT and DINOv2 keep the teacher beside the student
CONTAINERS = ('teacher', 'state_dict', 'model')


TRUST = 'ODIS_MM_TRUST_CHECKPOINTS'


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says which file, why, and what to do."""


class CheckpointWriteError(OSError):
    """A file that could not be written; whatever stood under its name is untouched."""


def read_checkpoint(path: PathLike) -> Dict[str, Tensor]:
    """The tensors of a checkpoint, by name, on the CPU. Nothing in the file is executed.

    Args:
        path: A ``.safetensors`` file or anything ``torch.load(weights_only=True)`` reads; a mapping under one of
            ``CONTAINERS`` is taken as the weights, otherwise the tensors of the file's top level.

    Raises:
        CheckpointError: the file is missing, truncated, no checkpoint, holds objects that only code could restore, or
            no tensor.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f'checkpoint {path} does not exist; check the path (it is relative to {Path.cwd()} '
                              'unless absolute).')
    if path.stat().st_size == 0:
        raise CheckpointError(f'checkpoint {path} is empty (0 bytes): its writing was interrupted; take an earlier '
                              'one.')
    content = _read_safetensors(path) if path.suffix == '.safetensors' else _read_torch(path)
    if isinstance(content, Mapping):
        for key in CONTAINERS:
            if isinstance(content.get(key), Mapping):
                content = content[key]
                break
        content = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"checkpoint {path} holds no tensors by name, neither at its top level nor under "
                              f'{", ".join(CONTAINERS)}.')
    return content


def read_meta(path: PathLike) -> dict:
    """What a file of :func:`save_backbone` says about itself; {} for files of other libraries."""
    content = {} if Path(path).suffix == '.safetensors' else _read_torch(Path(path))
    meta = content.get('meta') if isinstance(content, Mapping) else None
    return dict(meta) if isinstance(meta, Mapping) else {}


def _read_torch(path: Path):
    return restore(path, f'checkpoint {path}')


def restore(source, name: str, map_location='cpu'):
    """What ``torch.save`` wrote, as data: tensors, plain values and mmengine's log buffers.

    With ``ODIS_MM_TRUST_CHECKPOINTS=1`` in the environment a file that wants more is restored all the same, with a warning; a download
    never is.

    Args:
        source: A path, an open file, or a function that loads with ``weights_only=True``.
        name: Of the file, for messages.
        map_location: See ``torch.load``.

    Raises:
        CheckpointError: it can't be read, is truncated or no checkpoint, or restoring it would run code.
    """
    allow_mmengine_histories()  # again: mmengine's context managers take them off torch's list
    try:
        return source() if callable(source) else torch.load(source, map_location=map_location, weights_only=True)
    except PermissionError as error:
        raise CheckpointError(f'{name} cannot be read: no permission.') from error
    except (pickle.UnpicklingError, UnsafeCheckpoint) as error:
        wanted = re.search(r'(?:GLOBAL|class|function|instantiate|only, not) ([^\s,]+)', str(error))
        if wanted is None:  # the bytes are no pickle at all
            raise CheckpointError(f'{name} is truncated or no checkpoint: its contents are not those of torch.save.') from error
        wanted = wanted.group(1).rstrip('.')
        if os.environ.get(TRUST) == '1' and not callable(source):
            warnings.warn(f'{name}: code from the file is run ({wanted}), as {TRUST}=1 asks for.')
            return torch.load(source, map_location=map_location, weights_only=False)
        raise CheckpointError(f'{name} is refused: restoring it would run code from the file ({wanted}); save its state_dict alone, tensors by '
                              f'name, and pass that, or set {TRUST}=1 if you trust whoever wrote it.') from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise CheckpointError(f'{name} is truncated or no checkpoint: {_first_sentence(error)}.') from error


def _read_safetensors(path: Path) -> Dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise CheckpointError(f'{path} needs the package safetensors: pip install safetensors.') from error
    try:
        return load_file(path)
    except Exception as error:  # safetensors raises a class of its own
        raise CheckpointError(f'{path} is truncated or no safetensors file: {_first_sentence(error)}.') from error


def _first_sentence(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0].split('. ')[0].rstrip('.')[:200] if text else type(error).__name__


def save_backbone(path: PathLike, state_dict: Dict[str, Tensor], meta: Optional[dict] = None) -> None:
    """Write a backbone as the file that detectors take: tensors under ``backbone.*`` and plain values, nothing else.

    Args:
        path: Where to; the folder must exist. The file appears under this name only when it is complete.
        state_dict: Tensors, named as in the module or already under ``backbone.``; saved contiguous, on the CPU.
        meta: Plain values (str, int, float, bool, None, and lists or dicts of them) that say where the weights come
            from.

    Raises:
        CheckpointError: nothing to save, an entry that is no tensor, or a ``meta`` that is not plain.
        CheckpointWriteError: see :func:`atomic_write`.
    """
    if not state_dict:
        raise CheckpointError(f'{path} is not written: there is no tensor to save.')
    tensors = {}
    for name, value in state_dict.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{path} is not written: '{name}' is a {type(value).__name__}, not a tensor.")
        name = name if name.startswith('backbone.') else f'backbone.{name}'
        # a copy: a view would be saved with the whole storage behind it
        tensors[name] = value.detach().to('cpu', copy=True).contiguous()
    meta = {} if meta is None else meta
    if not _is_plain(meta):
        raise CheckpointError(f'{path} is not written: meta must hold plain values only (str, int, float, bool, '
                              'None, lists, dicts).')
    atomic_save(dict(state_dict=tensors, meta=meta), path)


def _is_plain(value) -> bool:
    if isinstance(value, dict):
        return all(type(k) in (str, int) and _is_plain(v) for k, v in value.items())
    if type(value) in (list, tuple):
        return all(map(_is_plain, value))
    return value is None or type(value) in (str, int, float, bool)


def atomic_save(content, path: PathLike) -> None:
    """``torch.save`` by :func:`atomic_write`."""
    atomic_write(path, lambda file: torch.save(content, file))


def atomic_write(path: PathLike, write: Callable[[BinaryIO], object]) -> None:
    """``write(file)`` to a temporary name in the same folder, flushed to the disk, then renamed over ``path``.

    An interruption at any moment leaves the old file or the new one, never a half.

    Raises:
        CheckpointWriteError: no such folder, no permission, or the disk is full; the temporary file is removed.
    """
    path = Path(path)
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f'.{path.name}.', suffix='.tmp', dir=path.parent)
        with os.fdopen(handle, 'wb') as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp's 0600 would hide the file from the group
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch's zip writer turns some write errors into RuntimeError
        cause = error if isinstance(error, OSError) else error.__context__
        raise CheckpointWriteError(f'could not save {path}: {_write_reason(cause, path)} Nothing that was there is '
                                   'changed.') from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


def _write_reason(error: Optional[BaseException], path: Path) -> str:
    code = getattr(error, 'errno', None)
    if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return 'the disk (or your quota) is full; free some space.'
    if code in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f'no permission to write into {path.parent}; choose another folder with --work-dir.'
    if code in (errno.ENOENT, errno.ENOTDIR):
        return f'the folder {path.parent} does not exist.'
    return f'writing failed ({_first_sentence(error) if error else "unknown reason"}), most often a full disk.'
