"""A plain ViT from a file of any layout to our names, and from there into any other; every tensor accounted for."""

import re
from dataclasses import dataclass
from typing import Dict, List, Mapping, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor

from ..utils.errors import CheckpointError
from .layouts import BESIDE, DIALECTS, LAYOUTS, OUR_PARTS, Layout, recognise, some, unwrap
from .positions import Grid, resize_positions, rope_periods
from .shape import HEADS, State, VitShape


@dataclass(frozen=True)
class Source:
    """A plain ViT as read from a file of any layout.

    Attributes:
        name: The file, or 'state dict'.
        layout: Key of :data:`LAYOUTS` that it was in.
        dialect: Who writes such files, in words.
        prefix: Where the backbone stood.
        state: The backbone under our names.
        raw: The same tensors under the names of the file, without the prefix.
        dropped: Tensors of the file that are not in ``state`` -> why.
        changed: Tensors of ``state`` that are not those of the file -> what was done.
        outside: Tensors of other parts of the file: leading part of the name -> how many.
        norm_eps: Of the norms, which tensors do not tell; the layout's own models have it.
        antialias: Whether its library resamples learned positions so.
    """

    name: str
    layout: str
    dialect: str
    prefix: str
    state: State
    raw: State
    dropped: Dict[str, str]
    changed: Dict[str, str]
    outside: Dict[str, int]
    norm_eps: float = 1e-6
    antialias: bool = False


# ------------------------------------------------------------------------------------------------------------------ rea


def read_vit(
    state: State,
    name: str = 'state dict',
    *,
    source_grid: Optional[Grid] = None,
    drop: Sequence[str] = (),
    heads: Optional[int] = None,
) -> Source:
    """Recognise a plain ViT by its names and bring it to ours, every tensor of the file accounted for.

    Args:
        state: Tensors by name, as :func:`read_checkpoint` gives them.
        name: For messages.
        source_grid: (rows, columns) of the position embedding; None: a square is deduced.
        drop: Names or beginnings of names, under the backbone's prefix, that are knowingly left out.
        heads: Attention heads, for rotary positions that the file leaves to the model; None: those of the published
            models.

    Raises:
        CheckpointError: no known layout; a tensor that no plain ViT has; incomplete or contradictory blocks; NaN; a
            patch grid that cannot be told.
    """
    state = unwrap(state)
    found = recognise(list(state))
    if found is None:
        raise CheckpointError(
            f'{name} holds no plain ViT of a known layout ({", ".join(LAYOUTS)}): its tensors are named '
            f'{some(list(state))}.'
        )
    layout, prefix = found
    ours, raw, dropped, outside = _rename(state, layout, prefix, name, drop)
    changed: Dict[str, str] = {}
    _merge_bias_mask(ours, name, changed)
    _merge_qkv(ours, name, layout)
    _merge_gates(ours)
    for key in [key for key, tensor in ours.items() if not tensor.numel()]:  # an empty list of registers
        del ours[key]
    if 'patch_embed.projection.bias' not in ours and 'patch_embed.projection.weight' in ours:
        weight = ours['patch_embed.projection.weight']
        ours['patch_embed.projection.bias'] = weight.new_zeros(weight.shape[0])
        changed['patch_embed.projection.bias'] = 'zeros, as the file has none'
    check_vit(ours, name, layout)
    if layout.rotary:
        _add_periods(ours, layout, heads, changed)
    elif 'pos_embed' in ours:
        changed.update(_normalise_positions(ours, layout, name, source_grid))
    dialect = next(
        (
            label
            for label, where, pattern in DIALECTS
            if where == layout.name and any(re.match(pattern, key) for key in state)
        ),
        layout.name,
    )
    antialias = layout.name in ('timm', 'huggingface-dinov2') and 'register_tokens' in ours
    return Source(name, layout.name, dialect, prefix, ours, raw, dropped, changed, outside, layout.norm_eps, antialias)


def _rename(
    state: State, layout: Layout, prefix: str, name: str, drop: Sequence[str]
) -> Tuple[State, State, Dict[str, str], Dict[str, int]]:
    """Tensors under our names and under the file's, what is dropped and why, and how many stand outside of the
    backbone."""
    ours: State = {}
    raw: State = {}
    dropped: Dict[str, str] = {}
    outside: Dict[str, int] = {}
    unknown: List[str] = []
    for key, tensor in state.items():
        if not key.startswith(prefix):
            part = _part(key)
            outside[part] = outside.get(part, 0) + 1
            continue
        short = key[len(prefix) :]
        mine = layout.ours(short)
        if short.startswith(tuple(drop)):
            dropped[key] = 'as asked'
        elif mine is not None:
            if mine in ours:
                raise CheckpointError(
                    f'{name} names {mine} twice (the second time {key}): it is no file of one plain ViT.'
                )
            ours[mine] = raw[short] = tensor
        elif reason := next((why for start, why in BESIDE if short.startswith(start)), None):
            dropped[key] = reason
        else:
            unknown.append(key)
    if unknown:
        raise CheckpointError(
            f'{name} holds {len(unknown)} tensor(s) that no plain ViT of the layout {layout.name} has '
            f'({some(unknown)}): the model would compute something else without them; leave them out knowingly with '
            'drop=.'
        )
    return ours, raw, dropped, outside


def _part(key: str) -> str:
    """What a tensor outside of the backbone belongs to."""
    pieces = key.split('.')
    return '.'.join(pieces[:2] if pieces[0] == 'teacher' else pieces[:1])


def _merge_bias_mask(state: State, name: str, changed: Dict[str, str]) -> None:
    """DINOv3 multiplies the bias of queries, keys and values by a mask, which is 0 for keys; a mask that was never
    filled is that one."""
    for key in [key for key in state if key.endswith('.attn.qkv.bias_mask')]:
        mask, bias = state.pop(key), key.removesuffix('_mask')
        if bias not in state:
            raise CheckpointError(f'{name} is incomplete: it has {key} and no bias that it masks.')
        if mask.isnan().all():
            mask = torch.ones_like(mask)
            mask.chunk(3)[1].zero_()
        state[bias] = state[bias] * mask
        changed[bias] = 'multiplied by its mask, which leaves keys without a bias'


def _merge_qkv(state: State, name: str, layout: Layout) -> None:
    """Queries, keys and values as one; keys that have no bias, as in DINOv3, get one of 0."""
    parts = ('query', 'key', 'value')
    for key in [key for key in state if key.endswith('.attn.query.weight')]:
        names = [key.replace('.query.', f'.{part}.') for part in parts]
        if not all(other in state for other in names):
            raise CheckpointError(
                f'{name} is incomplete: of query, key and value it lacks {next(n for n in names if n not in state)}.'
            )
        state[key.replace('.query.', '.qkv.')] = torch.cat([state.pop(other) for other in names])
    for key in [key for key in state if key.endswith('.attn.qkv.weight')]:
        names = [key.replace('.qkv.weight', f'.{part}.bias') for part in parts]
        there = [state[other] for other in names if other in state]
        if there:
            lacking = [other for other in names if other not in state]
            if lacking and not (layout.rotary and lacking == [names[1]]):
                raise CheckpointError(f'{name} is incomplete: of query, key and value it lacks {lacking[0]}.')
            biases = [state.pop(other, torch.zeros_like(there[0])) for other in names]
            state[key.replace('.weight', '.bias')] = torch.cat(biases)


def _merge_gates(state: State) -> None:
    """Gate and value of gated MLPs as one, ``ffn.w12``; a first layer twice as wide as the second takes is such a
    pair."""
    for first in [key for key in state if key.endswith('.ffn.layers.0.0.weight')]:
        block = first.removesuffix('layers.0.0.weight')
        second = state.get(f'{block}layers.1.weight')
        gate = f'{block}gate.weight' in state
        if gate or (second is not None and state[first].shape[0] == 2 * second.shape[1]):
            for ours, theirs in (('value' if gate else 'w12', 'layers.0.0'), ('w3', 'layers.1')):
                for leaf in ('weight', 'bias'):
                    if f'{block}{theirs}.{leaf}' in state:
                        state[f'{block}{ours}.{leaf}'] = state.pop(f'{block}{theirs}.{leaf}')
    for block in [key.removesuffix('layers.1.weight') for key in state if key.endswith('.ffn.layers.1.weight')]:
        if f'{block}gate.weight' in state:  # names of the last layer that both kinds share
            for leaf in ('weight', 'bias'):
                state[f'{block}w3.{leaf}'] = state.pop(f'{block}layers.1.{leaf}')
    for name in [key for key in state if '.ffn.gate.' in key]:
        other = name.replace('.gate.', '.value.')
        if other in state:
            state[name.replace('.gate.', '.w12.')] = torch.cat((state.pop(name), state.pop(other)))


def check_vit(state: State, name: str, layout: Optional[Layout] = None) -> None:
    """Whether tensors under our names are one whole ViT of finite numbers.

    Raises:
        CheckpointError: naming the first thing that is not so.
    """
    wanted = _check_blocks(state, name)
    patch = state['patch_embed.projection.weight']
    width = patch.shape[0]
    shapes = {'ln1.weight': (width,), 'attn.qkv.weight': (3 * width, width), 'attn.proj.weight': (width, width)}
    wrong = [f'{part} {list(wanted[part])}' for part, shape in shapes.items() if wanted[part] != shape]
    wrong += [
        f'{key} {list(state[key].shape)}'
        for key in ('cls_token', 'pos_embed', 'object_tokens', 'register_tokens')
        if key in state and (state[key].ndim != 3 or state[key].shape[2] != width)
    ]
    if patch.ndim != 4 or wrong:
        raise CheckpointError(
            f'{name} contradicts itself: its patches are embedded by {list(patch.shape)}, which does not fit '
            f'{some(wrong)}.'
        )
    if 'pos_embed' not in state and 'rope.periods' not in state and not (layout and layout.rotary):
        raise CheckpointError(
            f'{name} has no position embedding: it is no plain ViT (of rotary positions only those of DINOv3 are known '
            'here).'
        )
    bad = [key for key, value in state.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if bad:
        raise CheckpointError(
            f'{name} holds NaN or Inf in {some(bad)}: that training diverged; take an earlier checkpoint.'
        )


def _check_blocks(state: State, name: str) -> Dict[str, tuple]:
    """The shapes of a block's tensors, which all blocks share."""
    blocks: Dict[int, Dict[str, tuple]] = {}
    for key, tensor in state.items():
        match = re.fullmatch(r'layers\.(\d+)\.(.+)', key)
        if match:
            blocks.setdefault(int(match[1]), {})[match[2]] = tuple(tensor.shape)
    missing = sorted(set(range(max(blocks) + 1)) - set(blocks))
    if missing:
        raise CheckpointError(
            f'{name} is incomplete: of {max(blocks) + 1} blocks it lacks {some(list(map(str, missing)))}.'
        )
    wanted = max(blocks.values(), key=len)
    gated = any(part.startswith('ffn.w') for part in wanted)
    needed = {part for part in OUR_PARTS if 'gamma' not in part and not part.endswith('qkv.bias')}
    if gated:
        needed = {part for part in needed if 'ffn.layers' not in part} | {'ffn.w12.weight', 'ffn.w3.weight'}
    for number, parts in sorted(blocks.items()):
        if lacking := sorted((needed | set(wanted)) - set(parts)):
            raise CheckpointError(
                f'{name} is incomplete: block {number} has no {some(lacking)} (in the names of mmpretrain).'
            )
        if wrong := [part for part in wanted if parts[part] != wanted[part]]:
            raise CheckpointError(
                f'{name} contradicts itself: {wrong[0]} is {list(parts[wrong[0]])} in block {number} but '
                f'{list(wanted[wrong[0]])} elsewhere.'
            )
    return wanted


def _add_periods(state: State, layout: Layout, heads: Optional[int], changed: Dict[str, str]) -> None:
    """Rotary positions as the file has them, or, where it leaves them to the model, as DINOv3 has them."""
    if 'rope.periods' in state:
        state['rope.periods'] = state['rope.periods'].float()
        return
    width = state['patch_embed.projection.weight'].shape[0]
    head_width = width // heads if heads else width // HEADS.get(width, max(width // 64, 1))
    state['rope.periods'] = rope_periods(head_width)
    changed['rope.periods'] = f'computed, heads of {head_width} channels and base 100, as {layout.model} does itself'


def _normalise_positions(state: State, layout: Layout, name: str, source_grid: Optional[Grid]) -> Dict[str, str]:
    """One position slot for [CLS], if there is a [CLS], and none for registers; returns what was changed."""
    registers = state['register_tokens'].shape[1] if 'register_tokens' in state else 0
    position = state['pos_embed']
    slots = _leading_slots(position.shape[1], registers, layout, name, source_grid)
    if 'cls_token' not in state:
        if not slots:
            return {}
        state['pos_embed'] = position[:, slots:]
        return {'pos_embed': 'the slot of [CLS] left out, as there is no [CLS]'}
    if slots == 0:
        state['pos_embed'] = torch.cat((torch.zeros_like(position[:, :1]), position), dim=1)
        return {'pos_embed': 'a slot of zeros for [CLS], whose position is part of its token'}
    if slots > 1:
        state['register_tokens'] = state['register_tokens'] + position[:, 1:slots]
        state['pos_embed'] = torch.cat((position[:, :1], position[:, slots:]), dim=1)
        return {'register_tokens': 'their positions added to them'}
    return {}


def _leading_slots(length: int, registers: int, layout: Layout, name: str, source_grid: Optional[Grid]) -> int:
    possible = sorted(
        {0, 1, 1 + registers} if layout.name == 'timm' else {0, 1} if layout.name == 'detectron2' else {1}
    )
    if source_grid is not None:
        slots = length - source_grid[0] * source_grid[1]
        if slots not in possible:
            raise CheckpointError(
                f'{name} has {length} position slots, which are not {source_grid[0]} x {source_grid[1]} patches and '
                f'{" or ".join(map(str, possible))} leading slots; give the grid that it was trained on.'
            )
        return slots
    fitting = [slots for slots in possible if round((length - slots) ** 0.5) ** 2 == length - slots]
    if len(possible) == 1:
        return possible[0]
    if len(fitting) != 1:
        raise CheckpointError(
            f'{name} has {length} position slots, from which its patch grid cannot be told: give it (rows and columns) '
            'as source_grid=, --source-grid.'
        )
    return fitting[0]


# ------------------------------------------------------------------------------------------------------------------ wri


@dataclass(frozen=True)
class Conversion:
    """A plain ViT on its way into another layout.

    Attributes:
        source: What was read.
        target: The layout that it is brought into.
        state: Under our names, what the target holds: after folding, resizing and dropping.
        tensors: The same under the target's names; what is written.
        dropped: Tensors that the target cannot hold -> why.
        changed: Tensors that had to take another form -> how.
        comparable: Whether source and target compute the same features (nothing that takes part in them was dropped).
    """

    source: Source
    target: Layout
    state: State
    tensors: State
    dropped: Dict[str, str]
    changed: Dict[str, str]
    comparable: bool

    def __str__(self) -> str:
        source = self.source
        lines = [
            f'{source.name}: {source.dialect}' + (f', under {source.prefix}*' if source.prefix else ''),
            f'to {self.target.name} ({self.target.model}): {len(self.tensors)} tensors written',
        ]
        lines += [f'  outside the backbone, left out: {count} under {part}' for part, count in source.outside.items()]
        lines += [f'  dropped: {name} ({why})' for name, why in grouped({**source.dropped, **self.dropped})]
        lines += [f'  changed: {name} ({how})' for name, how in grouped({**source.changed, **self.changed})]
        return '\n'.join(lines)


def grouped(fates: Mapping[str, str]) -> List[Tuple[str, str]]:
    """All names of one reason on one line."""
    groups: Dict[str, List[str]] = {}
    for name, why in fates.items():
        groups.setdefault(why, []).append(name)
    return [(some(names, 6), why) for why, names in groups.items()]


def convert(
    source: Union[Source, State], target: str, *, grid: Optional[Grid] = None, source_grid: Optional[Grid] = None
) -> Conversion:
    """Bring a plain ViT into the layout ``target``.

    Args:
        source: From :func:`read_vit`, or tensors by name.
        target: Key of :data:`LAYOUTS`. 'huggingface' and 'timm' become the layout of DINOv2 or DINOv3 where layer
            scale, registers or rotary positions call for it.
        grid: (rows, columns) of the patch grid to resample the position embedding to; None: as it is.
        source_grid: Its present grid; None: a square is deduced (needed to resample only).

    Raises:
        CheckpointError: an unknown target, one that has no place for what the ViT computes with, or what
            :func:`read_vit` raises.
    """
    if not isinstance(source, Source):
        source = read_vit(source, source_grid=source_grid)
    shape = VitShape.required(source.state)
    layout = layout_for(target, shape, source.name)
    state = dict(source.state)
    dropped: Dict[str, str] = {}
    changed: Dict[str, str] = {}
    if grid is not None and shape.patches is not None:
        _resize(state, source.name, grid, source_grid, changed)
    if shape.layer_scale and not layout.layer_scale:
        changed.update(_fold_layer_scale(state))
    if layout.name in ('huggingface-dinov2', 'huggingface-dinov3') and not shape.layer_scale:
        changed.update(_unit_layer_scale(state))
    if layout.name != 'odis_mm' and 'object_tokens' in state and 'register_tokens' in layout.top:
        tokens = [state.pop('object_tokens'), *([state['register_tokens']] if 'register_tokens' in state else [])]
        state['register_tokens'] = torch.cat(tokens, dim=1)
        changed['register_tokens'] = '[OBJ] tokens beside the first written as registers, which computes the same'
    if 'rope.periods' in state and 'rope.periods' not in layout.top:
        changed.update(_standard_periods(state, source.name, layout))
    for name in [name for name in state if name in _OPTIONAL and name not in layout.top]:
        del state[name]
        dropped[name] = f'{layout.model} has no place for it'
    if layout.name == 'timm' and 'register_tokens' in state:  # timm gives [CLS] no position then (no_embed_class)
        state['cls_token'] = state['cls_token'] + state['pos_embed'][:, :1]
        state['pos_embed'] = torch.cat((torch.zeros_like(state['cls_token']), state['pos_embed'][:, 1:]), dim=1)
        changed['cls_token'] = 'its position added to it, as timm does for models with registers (no_embed_class=True)'
    tensors = _named(state, layout, shape, source.name)
    _complete(tensors, state, layout, source, changed)
    return Conversion(
        source,
        layout,
        state,
        {name: tensor.detach().contiguous() for name, tensor in tensors.items()},
        dropped,
        changed,
        not set(dropped) & {'cls_token', 'object_tokens', 'register_tokens'},
    )


_OPTIONAL = ('cls_token', 'object_tokens', 'register_tokens', 'ln1.weight', 'ln1.bias')


def layout_for(target: str, shape: VitShape, name: str) -> Layout:
    """The layout of ``target`` that has a place for a ViT of this shape.

    Raises:
        CheckpointError: there is none.
    """
    if target not in LAYOUTS:
        raise CheckpointError(f'there is no layout {target!r}; known are {", ".join(LAYOUTS)}.')
    rotary = shape.patches is None
    if rotary and target in ('timm', 'huggingface'):
        target = f'{target}-dinov3'
    elif target == 'huggingface' and (shape.layer_scale or shape.registers or shape.object_tokens or shape.gated):
        target = 'huggingface-dinov2'
    layout = LAYOUTS[target]
    if target != 'odis_mm' and rotary != layout.rotary:
        kinds = ('rotary', 'learned') if rotary else ('learned', 'rotary')
        raise CheckpointError(f'{name} has {kinds[0]} positions, and {layout.model} ({target}) has {kinds[1]} ones.')
    if shape.gated and not layout.gated:
        raise CheckpointError(f'{name} has gated MLPs (SwiGLU), for which {layout.model} ({target}) has no place.')
    return layout


def _named(state: State, layout: Layout, shape: VitShape, name: str) -> State:
    """Tensors under the layout's names, what it keeps apart taken apart."""
    tensors: State = {}
    for key, tensor in state.items():
        if key == 'rope.periods' and key not in layout.top:
            continue
        for part, piece in _pieces(key, tensor, layout, name):
            theirs = layout.theirs(part, shape.gated)
            if theirs is None:
                raise CheckpointError(f'{name} has {part}, for which {layout.model} ({layout.name}) has no place.')
            tensors[theirs] = piece
    return tensors


def _pieces(key: str, tensor: Tensor, layout: Layout, name: str) -> List[Tuple[str, Tensor]]:
    if '.attn.qkv.' in key:
        leaf = key.rpartition('.')[2]
        apart = f'attn.query.{leaf}' in layout.parts
        if apart:
            parts = [(key.replace('.qkv.', f'.{part}.'), piece) for part, piece in zip(_QKV, tensor.chunk(3))]
            if leaf == 'bias' and layout.rotary and not parts[1][1].any():
                del parts[1]  # DINOv3's keys have none
            return parts
        if leaf == 'bias' and layout.name == 'dinov3':
            mask = torch.ones_like(tensor)
            mask.chunk(3)[1].zero_()
            if tensor.chunk(3)[1].any():
                raise CheckpointError(f'{name} has a key bias, for which {layout.model} ({layout.name}) has no place.')
            return [(key, tensor), (f'{key}_mask', mask)]
    if '.ffn.w12.' in key and 'ffn.gate.weight' in layout.gated:
        return [(key.replace('.w12.', f'.{part}.'), piece) for part, piece in zip(('gate', 'value'), tensor.chunk(2))]
    return [(key, tensor)]


_QKV = ('query', 'key', 'value')


def _complete(tensors: State, state: State, layout: Layout, source: Source, changed: Dict[str, str]) -> None:
    """Tensors in a form of the target's own, and what its models have beside those of a plain ViT."""
    if layout.name == 'timm' and 'register_tokens' in state:
        tensors['pos_embed'] = state['pos_embed'][:, 1:]
    if layout.name == 'detectron2':  # its files keep the slot of the [CLS] of pretraining; the model takes it off
        if 'cls_token' in source.state:
            state['pos_embed'] = state['pos_embed'][:, 1:]
        else:
            position = state['pos_embed']
            tensors[str(layout.theirs('pos_embed'))] = torch.cat((torch.zeros_like(position[:, :1]), position), dim=1)
            changed['pos_embed'] = 'a slot of zeros for the [CLS] of pretraining, which detectron2 takes off again'
    width = state['patch_embed.projection.weight'].shape[0]
    mask_token = {'huggingface-dinov2': (1, width), 'huggingface-dinov3': (1, 1, width), 'dinov3': (1, width)}
    if layout.name in mask_token:  # used in pretraining only, but a strict load asks for it
        key = 'mask_token' if layout.name == 'dinov3' else 'embeddings.mask_token'
        tensors[key] = torch.zeros(mask_token[layout.name])
    if layout.name == 'huggingface-dinov3' and 'register_tokens' not in state:
        tensors['embeddings.register_tokens'] = torch.zeros(1, 0, width)


def to_timm(state_dict: State) -> State:
    """Rename an exported backbone for ``timm``'s ``VisionTransformer`` (``num_classes=0``, the same patch and image
    size).

    Args:
        state_dict: Tensors of a ``mmpretrain.VisionTransformer`` with [CLS] and final norm, with or without
            ``backbone.``.

    Returns:
        The same tensors (no copies) under timm's names.

    Raises:
        ValueError: a name that a plain ViT does not have.
    """
    renamed = {}
    for name, tensor in state_dict.items():
        key = name.removeprefix('backbone.')
        # registers change more than names: convert()
        theirs = None if key in ('object_tokens', 'register_tokens') else LAYOUTS['timm'].theirs(key)
        if theirs is None:
            raise ValueError(f"'{name}' is no tensor of a plain mmpretrain.VisionTransformer; timm has no name for it.")
        renamed[theirs] = tensor
    return renamed


def _standard_periods(state: State, name: str, layout: Layout) -> Dict[str, str]:
    """Make the periods of rotary positions those of base 100, which the target computes itself."""
    periods = state['rope.periods']
    exact = rope_periods(4 * len(periods))
    if not torch.allclose(periods.float(), exact, rtol=1e-2):
        raise CheckpointError(
            f'{name} has rotary positions of other periods than base 100 gives, which {layout.model} ({layout.name}) '
            'computes.'
        )
    state['rope.periods'] = exact
    if torch.equal(periods.float(), exact):
        return {}
    return {'rope.periods': 'rounded in the file (bfloat16); the target computes them exactly'}


def _resize(state: State, name: str, grid: Grid, source_grid: Optional[Grid], changed: Dict[str, str]) -> None:
    before = tuple(state['pos_embed'].shape)
    extra = int('cls_token' in state)
    if source_grid is None and round((before[1] - extra) ** 0.5) ** 2 != before[1] - extra:
        raise CheckpointError(
            f'{name} has positions for {before[1] - extra} patches, which are no square: give their grid (rows and '
            'columns) as source_grid=, --source-grid.'
        )
    side = round((before[1] - extra) ** 0.5)
    state['pos_embed'] = resize_positions(state['pos_embed'], grid, extra, source_grid=source_grid or (side, side))
    if tuple(state['pos_embed'].shape) != before or source_grid not in (None, tuple(grid)):
        changed['pos_embed'] = (
            f'resampled {list(before)} -> {list(state["pos_embed"].shape)}, {grid[0]} x {grid[1]} patches'
        )


def _fold_layer_scale(state: State) -> Dict[str, str]:
    """diag(gamma) (W x + b) = (diag(gamma) W) x + gamma b: the layer before takes the scale in."""
    changed = {}
    for scale, layer in (('attn.gamma1.weight', 'attn.proj'), ('ffn.gamma2.weight', 'ffn.layers.1')):
        for name in [name for name in state if name.endswith(scale)]:
            gamma, before = state.pop(name), name[: -len(scale)] + layer
            state[f'{before}.weight'] = gamma[:, None] * state[f'{before}.weight']
            state[f'{before}.bias'] = gamma * state[f'{before}.bias']
            changed[name] = 'layer scale multiplied into the layer before it, which computes the same'
    return changed


def _unit_layer_scale(state: State) -> Dict[str, str]:
    changed = {}
    for name in [name for name in state if name.endswith('.attn.proj.bias')]:
        for part in ('attn.gamma1.weight', 'ffn.gamma2.weight'):
            key = name.replace('attn.proj.bias', part)
            state[key] = torch.ones_like(state[name])
            changed[key] = 'a layer scale of ones added, which computes the same'
    return changed
