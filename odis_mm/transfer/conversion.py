"""A plain ViT from our names into any other layout, every tensor accounted for."""

from dataclasses import dataclass
from typing import Dict, List, Mapping, Optional, Tuple, Union

import torch
from torch import Tensor

from ..utils.errors import CheckpointError
from .layouts import LAYOUTS, Layout, some
from .positions import Grid, resize_positions, rope_periods, square_grid
from .reading import Source, read_vit
from .shape import State, VitShape


@dataclass(frozen=True)
class Conversion:
    """A plain ViT on its way into another layout.

    Attributes:
        source: What was read.
        target: The layout that it is brought into.
        state: Under our names, what the target holds: after folding, resizing and dropping.
        tensors: The same under the target's names; what is written.
        dropped: Tensors, and windows of attention, that the target cannot hold -> why.
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
    """Return all names of one reason on one line."""
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
    rows, columns = grid or source_grid or shape.square or (0, 1)
    if layout.name == 'huggingface-dinov2' and rows != columns:
        raise CheckpointError(
            f'{source.name} has positions of a grid that is no square, and {layout.model} takes them for one: resample '
            'them to one (grid=, --grid).'
        )
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
    if source.window_size and layout.name != 'odis_mm':
        dropped['window_size'] = f'{layout.model} attends globally in all blocks'
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
        not set(dropped) & {'cls_token', 'object_tokens', 'register_tokens', 'window_size'},
    )


_OPTIONAL = ('cls_token', 'object_tokens', 'register_tokens', 'ln1.weight', 'ln1.bias')


def layout_for(target: str, shape: VitShape, name: str) -> Layout:
    """Return the layout of ``target`` that has a place for a ViT of this shape.

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
    if not shape.cls_token and 'cls_token' in layout.top and target not in ('odis_mm', 'mmpretrain', 'timm'):
        raise CheckpointError(f'{name} has no [CLS] token, which {layout.model} ({target}) needs.')
    if not shape.final_norm and layout.name.startswith(('huggingface', 'timm-dinov3', 'dinov3')):
        raise CheckpointError(f'{name} has no final norm, and {layout.model} ({target}) norms its features.')
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
    own_grid = source_grid or square_grid(before[1] - extra)
    if own_grid is None:
        raise CheckpointError(
            f'{name} has positions for {before[1] - extra} patches, which are no square: give their grid (rows and '
            'columns) as source_grid=, --source-grid.'
        )
    state['pos_embed'] = resize_positions(state['pos_embed'], grid, extra, source_grid=own_grid)
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
