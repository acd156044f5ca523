"""A plain ViT from a file of any layout to our names, every tensor accounted for."""

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Dict, List, Optional, Sequence, Tuple

import torch

from ..utils.errors import CheckpointError, nearest
from .layouts import BESIDE, DIALECTS, LAYOUTS, OUR_PARTS, Layout, recognise, some, unwrap
from .positions import Grid, rope_periods, square_grid
from .shape import HEADS_OF, ROTARY_HEADS, State


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
        heads: Attention heads, where the dialect has other ones than most ViTs of the width.
        window_size, global_every: Of ``ObjectViT``, as the file's meta tells them.
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
    heads: Optional[int] = None
    window_size: int = 0
    global_every: int = 3


def read_vit(
    state: State,
    name: str = 'state dict',
    *,
    source_grid: Optional[Grid] = None,
    drop: Sequence[str] = (),
    heads: Optional[int] = None,
    allow_unexpected: Sequence[str] = (),
) -> Source:
    """Recognise a plain ViT by its names and bring it to ours, every tensor of the file accounted for.

    Args:
        state: Tensors by name, as :func:`read_checkpoint` gives them.
        name: For messages.
        source_grid: (rows, columns) of the position embedding; None: a square is deduced.
        drop: Names or beginnings of names, with or without the backbone's prefix, that are knowingly left out.
        heads: Attention heads, for rotary positions that the file leaves to the model; None: those of the published
            models.
        allow_unexpected: Names (shell patterns), under the backbone's prefix, that no plain ViT has and that may be
            there.

    Raises:
        CheckpointError: no known layout; a tensor that no plain ViT has; a name in ``drop`` that no tensor has;
            incomplete or contradictory blocks; NaN; a patch grid that cannot be told.
    """
    state = unwrap(state)
    found = recognise(list(state))
    if found is None:
        raise CheckpointError(
            f'{name} holds no plain ViT of a known layout ({", ".join(LAYOUTS)}): its tensors are named '
            f'{some(list(state))}.'
        )
    layout, prefix = found
    ours, raw, dropped, outside = _rename(state, layout, prefix, name, drop, allow_unexpected)
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
    if layout.name == 'odis_mm':
        refuse_deit3(ours, name, source_grid)
    if layout.rotary and 'cls_token' not in ours:
        raise CheckpointError(
            f'{name} has rotary positions and no [CLS] token: it is no plain ViT (of rotary positions only those of '
            'DINOv3 are known here).'
        )
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
    known = HEADS_OF.get(dialect, {}).get(ours['patch_embed.projection.weight'].shape[0])
    return Source(
        name, layout.name, dialect, prefix, ours, raw, dropped, changed, outside, layout.norm_eps, antialias, known
    )


def _rename(
    state: State, layout: Layout, prefix: str, name: str, drop: Sequence[str], allowed: Sequence[str]
) -> Tuple[State, State, Dict[str, str], Dict[str, int]]:
    """Tensors under our names and under the file's, what is dropped and why, and how many stand outside of the
    backbone."""
    ours: State = {}
    raw: State = {}
    dropped: Dict[str, str] = {}
    outside: Dict[str, int] = {}
    unknown: List[str] = []
    inside = [key for key in state if key.startswith(prefix)]
    shorts = [key[len(prefix) :] for key in inside]
    for start in drop:
        if not start or not any(key.startswith(start) for key in (*inside, *shorts)):
            raise CheckpointError(
                f'{name} has no tensor of the ViT whose name begins with {start!r}, which --drop (drop=) asks to leave '
                f'out{nearest(start, shorts) or f"; the names are {some(shorts)}"}.'
            )
    for key, tensor in state.items():
        if not key.startswith(prefix):
            part = _part(key)
            outside[part] = outside.get(part, 0) + 1
            continue
        short = key[len(prefix) :]
        mine = layout.ours(short)
        if key.startswith(tuple(drop)) or short.startswith(tuple(drop)):
            dropped[key] = 'as asked'
        elif mine is not None:
            if mine in ours:
                raise CheckpointError(
                    f'{name} names {mine} twice (the second time {key}): it is no file of one plain ViT.'
                )
            ours[mine] = raw[short] = tensor
        elif reason := next((why for start, why in BESIDE if short.startswith(start)), None):
            dropped[key] = reason
        elif any(fnmatchcase(short, pattern) for pattern in allowed):
            dropped[key] = 'as allowed'
        else:
            unknown.append(key)
    if unknown:
        raise CheckpointError(
            f'{name} holds {len(unknown)} tensor(s) that no plain ViT of the layout {layout.name} has '
            f'({some(unknown)}): the model would compute something else without them; leave them out knowingly with '
            'drop=, or allow_unexpected of an init_cfg.'
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
    """Check that tensors under our names are one whole ViT of finite numbers.

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
    check_values(state, name)


def refuse_deit3(state: State, name: str, grid: Optional[Grid]) -> None:
    """Refuse mmpretrain's ``DeiT3``, which has the names of its ViT and, told by the positions, none for [CLS].

    Raises:
        CheckpointError: tensors under our names are of one.
    """
    patches = state['pos_embed'].shape[1] if 'pos_embed' in state else 0
    rows, columns = grid or square_grid(patches) or (0, 0)
    if patches and rows * columns == patches and {'cls_token', 'layers.0.attn.gamma1.weight'} <= set(state):
        raise CheckpointError(
            f"{name} is of mmpretrain's DeiT3 (layer scale, no position of [CLS]), whose MLPs take ln1 and leave ln2 "
            'unused: its tensors compute something else in a plain ViT; of the published models take the file of timm '
            '(deit3_*).'
        )


def check_values(state: State, name: str) -> None:
    """Refuse tensors of 8 bits, which are values only together with scales that no layout has, and NaN.

    Raises:
        CheckpointError: naming the tensors.
    """
    coded = [key for key, value in state.items() if value.element_size() == 1 and value.dtype != torch.bool]
    if coded:
        raise CheckpointError(
            f'{name} holds values of 8 bits ({state[coded[0]].dtype}) in {some(coded)}: it is quantised; take the '
            'file that it was made from.'
        )
    bad = [key for key, value in state.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if bad:
        raise CheckpointError(
            f'{name} holds NaN or Inf in {some(bad)}: that training diverged; take an earlier checkpoint.'
        )


def _check_blocks(state: State, name: str) -> Dict[str, tuple]:
    """The shapes of a block's tensors, which all blocks share."""
    if 'patch_embed.projection.weight' not in state:
        raise CheckpointError(f'{name} is incomplete: it has no patch_embed.projection.weight.')
    blocks: Dict[int, Dict[str, tuple]] = {}
    for key, tensor in state.items():
        match = re.fullmatch(r'layers\.(\d+)\.(.+)', key)
        if match:
            blocks.setdefault(int(match[1]), {})[match[2]] = tuple(tensor.shape)
    if not blocks:
        raise CheckpointError(f'{name} is incomplete: it has no blocks.')
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
    head_width = width // heads if heads else width // ROTARY_HEADS.get(width, max(width // 64, 1))
    state['rope.periods'] = rope_periods(head_width)
    changed['rope.periods'] = f'computed, heads of {head_width} channels and base 100, as {layout.model} does itself'


def _normalise_positions(state: State, layout: Layout, name: str, source_grid: Optional[Grid]) -> Dict[str, str]:
    """One position slot for [CLS], if there is a [CLS], and none for registers; returns what was changed."""
    registers = state['register_tokens'].shape[1] if 'register_tokens' in state else 0
    position = state['pos_embed']
    has_cls = 'cls_token' in state
    slots = _leading_slots(position.shape[1], registers, has_cls, layout, name, source_grid)
    if not has_cls:
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


def _leading_slots(
    length: int, registers: int, has_cls: bool, layout: Layout, name: str, source_grid: Optional[Grid]
) -> int:
    # without [CLS] detectron2 keeps the slot of that of pretraining, mmpretrain and Hugging Face's I-JEPA have none
    possible = sorted({0, 1, 1 + registers} if layout.name == 'timm' else {1} if has_cls else {0, 1})
    if source_grid is not None:
        slots = length - source_grid[0] * source_grid[1]
        if slots not in possible:
            raise CheckpointError(
                f'{name} has {length} position slots, which are not {source_grid[0]} x {source_grid[1]} patches and '
                f'{" or ".join(map(str, possible))} leading slots; give the grid that it was trained on.'
            )
        return slots
    fitting = [slots for slots in possible if square_grid(length - slots)]
    if len(possible) == 1:
        return possible[0]
    if len(fitting) != 1:
        raise CheckpointError(
            f'{name} has {length} position slots, from which its patch grid cannot be told: give it (rows and columns) '
            'as source_grid=, --source-grid.'
        )
    return fitting[0]
