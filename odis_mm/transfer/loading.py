"""Loading a backbone so that one can rely on it: every tensor finds its place, or an error says which and why."""

import hashlib
import logging
import os
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from ..utils.errors import CheckpointError
from ..utils.files import PathLike
from .checkpoint import read_checkpoint, read_meta
from .conversion import grouped
from .layouts import BESIDE, recognise, some, unwrap
from .positions import Grid, resize_positions, told_grid
from .reading import check_values, read_vit, refuse_deit3
from .shape import VitShape

# where a backbone stands in a file, best first: the teacher is what gets evaluated, so it is preferred to the student
# beside it
PREFIXES = ('teacher.backbone.', 'backbone.', '')


@dataclass(frozen=True)
class Report:
    """What became of the tensors of a file, and of those of the module.

    Attributes:
        source: File name, or 'state dict'.
        prefix: Where the backbone stood in the file ('' if at the top).
        matched: Module tensors that now equal the file's.
        expected_missing: Module tensors that kept their initial value, as allowed.
        unexpected: Backbone tensors of the file that found no place, as allowed.
        resized: Of the matched ones, those resampled on the way: name -> (shape in the file, shape in the module).
        outside: How many tensors of the file belong to other parts of the model (heads, optimizer-side copies).
        notes: Tensors that were left out or brought into another form -> why or how.
        fingerprint: Of the backbone as the file has it, under our names: that of the card beside an export.
    """

    source: str
    prefix: str
    matched: Tuple[str, ...]
    expected_missing: Tuple[str, ...]
    unexpected: Tuple[str, ...]
    resized: Dict[str, Tuple[tuple, tuple]]
    outside: int
    notes: Mapping[str, str] = field(default_factory=dict)
    fingerprint: str = ''

    def __str__(self) -> str:
        parts = [
            f'{len(self.matched)} matched',
            f'{len(self.expected_missing)} expected-missing',
            f'{len(self.unexpected)} unexpected',
        ]
        for kind in ('expected_missing', 'unexpected'):
            names = getattr(self, kind)
            if names:
                parts.append(f'{kind.replace("_", "-")}: {some(names)}')
        for name, (before, after) in self.resized.items():
            coarser = ' for good: what is saved of it has the coarser grid' if before[1] > after[1] else ''
            parts.append(f'{name} resized {list(before)} -> {list(after)}{coarser * (name == "pos_embed")}')
        if self.outside:
            parts.append(f'{self.outside} outside the backbone left out')
        parts += [f'{names}: {why}' for names, why in grouped(self.notes)]
        where = f' ({self.prefix}*)' if self.prefix else ''
        return f'{self.source}{where}: ' + ', '.join(parts)


def load_backbone(
    module: nn.Module,
    source: Union[PathLike, Dict[str, Tensor]],
    *,
    strict: bool = True,
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
    logger='current',
) -> Report:
    """Copy the backbone found in ``source`` into ``module`` and prove that it arrived.

    The backbone is looked for under ``teacher.backbone.``, ``backbone.`` and at the top level, in this order. For a
    plain ViT a file of timm, DINO, iBOT, DINOv2, MAE, GTSA, Hugging Face or mmseg will do as well (see
    :func:`read_vit`). Position embeddings are resampled to the module's patch grid with an explicit size.

    Args:
        module: A backbone, such as ``mmpretrain.VisionTransformer``.
        source: A checkpoint file (see :func:`read_checkpoint`) or tensors by name.
        strict: Raise if a backbone tensor finds no place or a module tensor stays unfilled. False only reports them.
        allow_missing: Names (shell patterns) that the file need not have.
        allow_unexpected: Names (shell patterns) in the file that the module need not have.
        logger: Where the one report line goes: an mmengine logger or its name; None prints.

    Raises:
        CheckpointError: (a ValueError) the file cannot be read, belongs to another architecture, holds NaN or Inf, or,
            if strict, does not fit name for name. The module is unchanged in every case.
    """
    if isinstance(source, (str, os.PathLike)):
        name, state, meta = str(source), read_checkpoint(source), read_meta(source)
    else:
        name, state, meta = 'state dict', dict(source), {}
    own, state = module.state_dict(), unwrap(state)
    layout = recognise(list(state)) if describe_vit(own) else None
    notes: Dict[str, str] = {}
    if layout is None or layout[0].name == 'odis_mm':
        prefix, found = _find_backbone(state, module, name)
        for key in [key for key in found if layout and key.startswith('ln2.') and key not in own]:
            notes[key] = dict(BESIDE)['ln2.']
            del found[key]
    else:
        heads = getattr(module, 'arch_settings', {}).get('num_heads')
        vit = read_vit(state, name, source_grid=told_grid(meta), heads=heads, allow_unexpected=allow_unexpected)
        prefix, found, notes = f'{vit.dialect}, {vit.prefix}', vit.state, {**vit.dropped, **vit.changed}
        meta = {'norm_eps': vit.norm_eps, **({'num_heads': vit.heads} if vit.heads else {}), **meta}
    mark = fingerprint(found)
    resized: Dict[str, Tuple[tuple, tuple]] = {}
    for stem in ('patch_embed.projection.weight', 'conv1.weight'):
        if stem in found and stem in own and found[stem].shape[1] == 3 != own[stem].shape[1]:
            before = tuple(found[stem].shape)
            found[stem] = inflate(found[stem], own[stem].shape[1])
            resized[stem] = (before, tuple(found[stem].shape))
    _check_architecture(found, own, module, name)
    _check_meta(meta, module, name, logger)

    if 'pos_embed' in found and 'pos_embed' in own:
        grid = told_grid(meta)
        before = tuple(found['pos_embed'].shape)
        # as many patches may be another grid
        other = grid is not None and grid != tuple(getattr(module, 'patch_resolution', grid))
        if other or before != tuple(own['pos_embed'].shape):
            found['pos_embed'] = _fit_positions(found, module, name, grid)
            resized['pos_embed'] = (before, tuple(found['pos_embed'].shape))
    wrong = [
        f'{k} {list(found[k].shape)} (the module has {list(own[k].shape)})'
        for k in found
        if k in own and found[k].shape != own[k].shape
    ]
    if wrong:
        raise CheckpointError(
            f'{name} does not fit {type(module).__name__}: {some(wrong)}; use the settings it was trained with.'
        )
    check_values(found, name)

    matched = [k for k in found if k in own]
    homeless, unfilled = [k for k in found if k not in own], [k for k in own if k not in found]
    if strict:
        _require_fit(
            name,
            module,
            [k for k in homeless if not _any_match(k, allow_unexpected)],
            [k for k in unfilled if not _any_match(k, allow_missing)],
            found,
        )
    # what is missing or left over was judged above, by name; what arrives is compared below
    module.load_state_dict({k: found[k] for k in matched}, strict=False)
    now = module.state_dict()
    lost = [k for k in matched if not torch.equal(now[k], found[k].to(now[k]))]
    if lost:  # a state-dict hook of the module changed them on the way
        raise CheckpointError(
            f'{name} was loaded but {some(lost)} differ from the file afterwards: a hook of '
            f'{type(module).__name__} changes them.'
        )
    outside = sum(not key.startswith(prefix.rpartition(', ')[2]) for key in state)
    report = Report(name, prefix, tuple(matched), tuple(unfilled), tuple(homeless), resized, outside, notes, mark)
    print_log(f'backbone <- {report}', logger=logger)
    return report


def inflate(weight: Tensor, channels: int) -> Tensor:
    """Bring a first convolution [D, 3, h, w] of RGB images to another number of channels, [D, channels, h, w].

    One channel gets the sum, as a grey image is three equal channels. More get the three in turn, times 3 / channels,
    so that channels that are alike have the response of a grey image (timm's rule).
    """
    if channels == 1:
        return weight.sum(1, keepdim=True)
    return weight[:, torch.arange(channels) % 3] * (3 / channels)


def _find_backbone(state: Dict[str, Tensor], module: nn.Module, name: str) -> Tuple[str, Dict[str, Tensor]]:
    for prefix in PREFIXES:
        found = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
        if found and (prefix or any(key in found for key in module.state_dict())):
            return prefix, found
    raise CheckpointError(
        f'{name} holds no backbone of the kind {type(module).__name__}: its tensors are named {some(list(state))}.'
    )


def describe_vit(state: Dict[str, Tensor]) -> Dict[str, object]:
    """Read off the tensors of a plain ViT (mmpretrain names).

    Returns:
        Width, depth, patch size, input channels and MLP width, by these names; {} if it is no such ViT.
    """
    shape = VitShape.of(state)
    if shape is None:
        return {}
    described: Dict[str, object] = {
        'width': shape.width,
        'depth': shape.depth,
        'patch size': shape.patch_size,
        'input channels': shape.in_channels,
    }
    return {**described, 'MLP width': shape.mlp} if shape.mlp else described


def _check_architecture(found: Dict[str, Tensor], own: Dict[str, Tensor], module: nn.Module, name: str) -> None:
    theirs, ours = describe_vit(found), describe_vit(own)
    if not ours:
        return
    if not theirs:
        raise CheckpointError(
            f'{name} holds no plain ViT in mmpretrain names (its tensors are named '
            f'{some(list(found))}), '
            f'but {type(module).__name__} needs one.'
        )
    differ = [
        f'{key} {theirs[key]} instead of {value}' for key, value in ours.items() if theirs.get(key, value) != value
    ]
    if differ:
        raise CheckpointError(
            f'{name} is of another architecture than the module: {", ".join(differ)}; '
            'take the config of the same architecture, or another checkpoint.'
        )


def _fit_positions(found: Dict[str, Tensor], module: Any, name: str, source_grid: Optional[Grid]) -> Tensor:
    pos_embed, grid = found['pos_embed'], getattr(module, 'patch_resolution', None)
    if grid is None or pos_embed.ndim != 3 or pos_embed.shape[2] != module.pos_embed.shape[2]:
        raise CheckpointError(
            f'{name}: its pos_embed {list(pos_embed.shape)} cannot be brought to '
            f'{list(module.pos_embed.shape)} '
            f'of {type(module).__name__}.'
        )
    extra = module.pos_embed.shape[1] - grid[0] * grid[1]
    if extra:
        refuse_deit3(found, name, source_grid)
    try:
        mode, antialias = getattr(module, 'interpolate_mode', 'bicubic'), getattr(module, 'antialias', False)
        return resize_positions(pos_embed, tuple(grid), extra, mode, source_grid, antialias)
    except ValueError as error:
        raise CheckpointError(f'{name} does not fit {type(module).__name__}: {error}.') from error


def _require_fit(
    name: str, module: nn.Module, homeless: List[str], unfilled: List[str], found: Dict[str, Tensor]
) -> None:
    faults = []
    if homeless:
        faults.append(f'{len(homeless)} backbone tensor(s) of the file find no place ({some(homeless)})')
    if unfilled:
        faults.append(f'{len(unfilled)} tensor(s) of the module are not in the file ({some(unfilled)})')
    if faults:
        hint = _missing_options(VitShape.of(found), module)
        raise CheckpointError(f'{name} does not fit {type(module).__name__}: {" and ".join(faults)}{hint}.')


_DEFAULTS = dict(
    layer_scale_init_value=0.0, num_registers=0, rope=None, key_bias=True, swiglu=False, qkv_bias=True, final_norm=True
)


def _missing_options(shape: Optional[VitShape], module: nn.Module) -> str:
    """The options of the backbone without which a file has no place in it."""
    own = VitShape.of(module.state_dict())
    if shape is None or own is None:
        return ''
    wanted, there = shape.backbone_options(), own.backbone_options()
    told = [f'{name}={value}' for name, value in wanted.items() if there.get(name) != value]
    told += [f'{name}={_DEFAULTS[name]}' for name in there if name not in wanted]
    kind = (
        ''
        if hasattr(module, 'object_slice') or not {'num_registers', 'rope', 'swiglu'} & set(wanted)
        else ("type='mmpretrain.ObjectViT', ")
    )
    return f'; set {kind}{", ".join(told)} on the backbone' if told else ''


def _check_meta(meta: dict, module: nn.Module, name: str, logger) -> None:
    """Heads, the norms' epsilon and windows, which tensors do not tell and without which the same tensors compute
    something else."""
    own = getattr(module, 'arch_settings', {}).get('num_heads')
    if own and meta.get('num_heads', own) != own:
        raise CheckpointError(
            f'{name} was trained with {meta["num_heads"]} attention heads and {type(module).__name__} has {own}: set '
            'num_heads in its arch.'
        )
    norm = getattr(module, 'ln1', None) if own else None
    eps = getattr(norm, 'eps', None)
    if eps is not None and meta.get('norm_eps', eps) != eps:
        raise CheckpointError(
            f'{name} was trained with norms of eps {meta["norm_eps"]:g} and {type(module).__name__} has {eps:g}: set '
            f"norm_cfg=dict(type='LN', eps={meta['norm_eps']:g}) on the backbone."
        )
    windows = {key: meta.get(key) for key in ('window_size', 'global_every')}
    if own and windows['window_size'] and any(getattr(module, key, None) != value for key, value in windows.items()):
        told = ', '.join(f'{key}={value}' for key, value in windows.items())
        print_log(
            f'{name} was trained with attention in windows, and {type(module).__name__} computes something else of its '
            f"tensors: set type='mmpretrain.ObjectViT', {told} on the backbone, unless that is meant.",
            logger=logger,
            level=logging.WARNING,
        )


def _any_match(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def fingerprint(state: Dict[str, Tensor]) -> str:
    """Return a short name (12 hexadecimal digits) for tensors: the same for equal names, types, shapes and bits, on any
    device."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f'{name} {tensor.dtype} {list(tensor.shape)}'.encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data if tensor.numel() else b'')
    return digest.hexdigest()[:12]
