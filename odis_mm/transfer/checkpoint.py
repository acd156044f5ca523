"""Reading checkpoint files without running code from them, and writing exports."""

import json
import os
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Dict, Optional

import torch
from torch import Tensor

from ..utils.errors import CheckpointError
from ..utils.files import PathLike, atomic_save, first_sentence
from ..utils.paths import check_checkpoint
from .safe_globals import UnsafeCheckpoint, allow_mmengine_histories

# where libraries keep the weights in a file, best first: DINO, iBOT and DINOv2 keep the teacher beside the student
CONTAINERS = ('teacher', 'state_dict', 'model')
TRUST = 'ODIS_MM_TRUST_CHECKPOINTS'
# models of timm whose tensors are named as a plain ViT's, or ResNet's, and which compute something else of them: name,
# what they have
OTHER_MODELS = (
    (r'vit_\w+_rpn_\d+', 'norms after attention and MLPs'),
    (r'vit_\w+_rope_\w+', 'rotary positions other than those of DINOv3'),
    (
        r'vit_(\w+_patch32_siglip|so400m_patch16_siglip|giantopt_patch16_siglip|large_patch16_siglip(?=(_gap)?_512))'
        r'(_gap)?_\d+',
        'MLPs with a tanh GELU',
    ),
    (r'resnet(aa|blur)\d+', 'filters before its strides'),
)
# of timm's models of a usual width, where they have other heads than its other ones
HEADS_OF_MODELS = {'vit_base_patch16_gap_224': 16}


def read_checkpoint(path: PathLike) -> Dict[str, Tensor]:
    """Return the tensors of a checkpoint, by name, on the CPU. Nothing in the file is executed.

    Args:
        path: A ``.safetensors`` file or anything ``torch.load(weights_only=True)`` reads; a mapping under one of
            ``CONTAINERS`` is taken as the weights, otherwise the tensors of the file's top level.

    Raises:
        CheckpointError: the file is missing, truncated, no checkpoint, holds objects that only code could restore, or
            no tensor.
    """
    path = check_checkpoint(path)
    content: Any = _read_safetensors(path) if path.suffix == '.safetensors' else _read_torch(path)
    if isinstance(content, Mapping):
        for key in CONTAINERS:
            if isinstance(content.get(key), Mapping):
                content = content[key]
                break
        content = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not isinstance(content, dict) or not content:
        raise CheckpointError(
            f'checkpoint {path} holds no tensors by name, neither at its top level nor under {", ".join(CONTAINERS)}.'
        )
    return content


def read_meta(path: PathLike) -> dict:
    """Return what a file says about itself beyond its tensors, as far as it does.

    Of a file that this package wrote: ``num_heads``, ``patch_size``, ``norm_eps``, ``mean`` and ``std`` (0..255, RGB),
    and where it comes from. Of a Hugging Face folder the same from ``config.json`` and ``preprocessor_config.json``
    beside the file; of one of timm mean and std from ``config.json``, and heads by its name where they differ.

    Raises:
        CheckpointError: the file is missing, empty or cannot be read, or its name, its ``arch`` or ``config.json`` tell
            that it is of a model that computes something else of its tensors than a plain ViT or ResNet.
    """
    path = check_checkpoint(path)
    named = _told_by_name(path, path.stem)
    if path.suffix != '.safetensors':
        content = _read_torch(path)
        meta = content.get('meta') if isinstance(content, Mapping) else None
        named.update(_told_by_name(path, content.get('arch') if isinstance(content, Mapping) else None))
        if path.name == 'pytorch_model.bin':
            return {**_huggingface_meta(path.parent), **_huggingface_normalisation(path.parent)}
        return {**named, **(meta if isinstance(meta, Mapping) else {})}
    from safetensors import safe_open

    try:
        with safe_open(path, 'pt') as file:
            written = (file.metadata() or {}).get('odis_mm')
    except Exception as error:  # of a class of its own
        raise CheckpointError(f'checkpoint {path} is truncated or no checkpoint: {first_sentence(error)}.') from error
    if written:
        return json.loads(written)
    return {**named, **_huggingface_meta(path.parent), **_huggingface_normalisation(path.parent)}


def _told_by_name(path: Path, architecture: Any) -> dict:
    if not isinstance(architecture, str):
        return {}
    for pattern, trait in OTHER_MODELS:
        if found := re.match(pattern, architecture):
            raise CheckpointError(
                f'{path} is of {found[0]}, which has {trait}, and these no backbone here has: take the file of another '
                'model.'
            )
    heads = HEADS_OF_MODELS.get(architecture.partition('.')[0])
    return dict(num_heads=heads) if heads else {}


def _huggingface_meta(folder: Path) -> dict:
    config, path = _read_json(folder / 'config.json'), folder / 'config.json'
    named = _told_by_name(path, config.get('architecture'))
    if 'num_attention_heads' in config:
        _refuse_activation(config, path)
    names = dict(num_heads='num_attention_heads', patch_size='patch_size', norm_eps='layer_norm_eps')
    told = {ours: config[theirs] for ours, theirs in names.items() if isinstance(config.get(theirs), (int, float))}
    found = {**named, **told}
    size, patch = config.get('image_size'), found.get('patch_size')
    if isinstance(size, list) and len(size) == 2 and patch:
        found['patch_grid'] = [side // patch for side in size]
    return found


def _refuse_activation(config: dict, path: Path) -> None:
    """What tensors do not tell and backbones here have one of: activation of MLPs, base of rotary positions."""
    wanted, told = 'silu' if config.get('use_gated_mlp') else 'gelu', config.get('hidden_act', 'gelu')
    base = (config.get('rope_parameters') or config).get('rope_theta', 100.0)
    if told != wanted and not config.get('use_swiglu_ffn'):
        raise CheckpointError(
            f'{path}: hidden_act={told!r}, and MLPs of backbones here have {wanted!r}: take the file of another model.'
        )
    if config.get('model_type') == 'dinov3_vit' and base != 100:
        raise CheckpointError(
            f'{path}: rope_theta={base!r}, and rotary positions of files in the names of Hugging Face are read with '
            '100: take the file of another model.'
        )


def _huggingface_normalisation(folder: Path) -> dict:
    config = _read_json(folder / 'preprocessor_config.json')
    found = {ours: config.get(theirs) for ours, theirs in dict(mean='image_mean', std='image_std').items()}
    timm = _read_json(folder / 'config.json')
    if not config and 'architecture' in timm:  # older files have no inner dict
        inner = timm.get('pretrained_cfg')
        found = {name: (inner if isinstance(inner, dict) else timm).get(name) for name in found}
    return {ours: [255 * value for value in values] for ours, values in found.items() if isinstance(values, list)}


def _read_json(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise CheckpointError(f'{path} is no json file: {first_sentence(error)}.') from error
    return content if isinstance(content, dict) else {}


def _read_torch(path: Path):
    return restore(path, f'checkpoint {path}')


def restore(source, name: str, map_location='cpu'):
    """Return what ``torch.save`` wrote, as data: tensors, plain values and mmengine's log buffers.

    With ``ODIS_MM_TRUST_CHECKPOINTS=1`` in the environment a file that wants more is restored all the same, with a
    warning; a download never is.

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
        match = re.search(r'(?:GLOBAL|class|function|instantiate|only, not) ([^\s,]+)', str(error))
        if match is None:  # the bytes are no pickle at all
            raise CheckpointError(
                f'{name} is truncated or no checkpoint: its contents are not those of torch.save.'
            ) from error
        wanted = match.group(1).rstrip('.')
        if os.environ.get(TRUST) == '1' and not callable(source):
            warnings.warn(f'{name}: code from the file is run ({wanted}), as {TRUST}=1 asks for.')
            # the user trusts who wrote it, and was told what is run
            return torch.load(source, map_location=map_location, weights_only=False)
        raise CheckpointError(
            f'{name} is refused: restoring it would run code from the file ({wanted}); save its state_dict alone, '
            f'tensors by name, and pass that, or set {TRUST}=1 if you trust whoever wrote it.'
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise CheckpointError(f'{name} is truncated or no checkpoint: {first_sentence(error)}.') from error


def _read_safetensors(path: Path) -> Dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise CheckpointError(f'{path} needs the package safetensors: pip install safetensors.') from error
    try:
        return load_file(path)
    except Exception as error:  # safetensors raises a class of its own
        raise CheckpointError(f'{path} is truncated or no safetensors file: {first_sentence(error)}.') from error


def save_backbone(path: PathLike, state_dict: Dict[str, Tensor], meta: Optional[dict] = None) -> None:
    """Write a backbone as the file that detectors take: tensors under ``backbone.*`` and plain values, nothing else.

    Args:
        path: Where to; the folder must exist. The file appears under this name only when it is complete.
        state_dict: Tensors, named as in the module or already under ``backbone.``; saved contiguous, on the CPU.
        meta: Plain values (str, int, float, bool, None, and lists or dicts of them) that say where the weights come
            from.

    Raises:
        CheckpointError: nothing to save, an entry that is no tensor, or a ``meta`` that is not plain.
        FileWriteError: see :func:`atomic_write`.
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
        raise CheckpointError(
            f'{path} is not written: meta must hold plain values only (str, int, float, bool, None, lists, dicts).'
        )
    atomic_save(dict(state_dict=tensors, meta=meta), path)


def _is_plain(value) -> bool:
    if isinstance(value, dict):
        return all(type(k) in (str, int) and _is_plain(v) for k, v in value.items())
    if type(value) in (list, tuple):
        return all(map(_is_plain, value))
    return value is None or type(value) in (str, int, float, bool)
