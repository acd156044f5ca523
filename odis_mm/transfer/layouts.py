"""The names under which other libraries keep a plain ViT, and the way from each to each.

In the middle stand the names of ``mmpretrain.VisionTransformer`` ("ours" below), with one more: ``object_tokens`` [1, k, D], leading tokens
without a position, which ``ObjectViT`` has and DINOv2 calls registers. A layout is a table of names; what a library keeps in another form
(queries, keys and values apart, no layer scale, ...) is turned into a form that computes the same, and said.
"""

import re
from dataclasses import dataclass, field
from typing import Dict, List, Mapping, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor

from ..utils.errors import CheckpointError
from .positions import Grid, resize_positions

State = Dict[str, Tensor]


def _modules(pairs: Mapping[str, str]) -> Dict[str, str]:
    return {f'{ours}.{leaf}': f'{theirs}.{leaf}' for ours, theirs in pairs.items() for leaf in ('weight', 'bias')}


@dataclass(frozen=True)
class Layout:
    """One library's names.

    Attributes:
        name: As it is asked for.
        top: Our name -> its name, outside the blocks; what is not named here, the library cannot hold.
        block: How a block begins, '{}' being its number.
        parts: Our name -> its name within a block. ``attn.query``, ``attn.key`` and ``attn.value`` in place of ``attn.qkv`` if it
            keeps them apart; no ``gamma`` if it has no layer scale.
        prefix: What stands before every name in a file that this package writes.
        also: Further names that are read as ours: within the layout's dialects.
        model: What the file is for, in words.
    """

    name: str
    top: Mapping[str, str]
    block: str
    parts: Mapping[str, str]
    prefix: str = ''
    also: Mapping[str, str] = field(default_factory=dict)
    model: str = ''

    @property
    def split_qkv(self) -> bool:
        return 'attn.query.weight' in self.parts

    @property
    def layer_scale(self) -> bool:
        return 'attn.gamma1.weight' in self.parts

    @property
    def signature(self) -> Tuple[str, ...]:
        """Three names that a file of this layout has, as patterns."""
        block = re.escape(self.block).replace(r'\{\}', r'(?:\d+\.)?0')  # DINOv2 chunks: blocks.<chunk>.<block>
        parts = 'attn.query.weight' if self.split_qkv else 'attn.qkv.weight', 'ln1.weight'
        return re.escape(self.top['patch_embed.projection.weight']), *(
            block + re.escape(self.parts[part]) for part in parts
        )

    def ours(self, name: str) -> Optional[str]:
        """Our name for one of this layout's; None if there is none."""
        top = {theirs: ours for ours, theirs in self.top.items()}
        if name in top:
            return top[name]
        match = re.fullmatch(re.escape(self.block).replace(r'\{\}', r'(?:\d+\.)?(\d+)') + '(.+)', name)
        if match is None:
            return self.also.get(name)
        parts = {theirs: ours for ours, theirs in self.parts.items()}
        part = parts.get(match[2], self.also.get(match[2]))
        return None if part is None else f'layers.{int(match[1])}.{part}'

    def theirs(self, name: str) -> Optional[str]:
        """This layout's name for one of ours, with its prefix; None if it cannot hold it."""
        match = re.fullmatch(r'layers\.(\d+)\.(.+)', name)
        found = self.top.get(name) if match is None else self.parts.get(match[2])
        if found is None:
            return None
        return self.prefix + (found if match is None else self.block.format(match[1]) + found)


_EMBED = dict(cls_token='cls_token', pos_embed='pos_embed')
_MLP = {'ffn.layers.0.0': 'mlp.fc1', 'ffn.layers.1': 'mlp.fc2'}
_OUR_TOP = {**_EMBED, **_modules({'patch_embed.projection': 'patch_embed.projection', 'ln1': 'ln1'})}
_OUR_PARTS = {
    **_modules({name: name for name in ('ln1', 'attn.qkv', 'attn.proj', 'ln2', 'ffn.layers.0.0', 'ffn.layers.1')}),
    'attn.gamma1.weight': 'attn.gamma1.weight',
    'ffn.gamma2.weight': 'ffn.gamma2.weight',
}
_TIMM_PARTS = _modules({'ln1': 'norm1', 'attn.qkv': 'attn.qkv', 'attn.proj': 'attn.proj', 'ln2': 'norm2', **_MLP})
_HF_TOP = {
    'cls_token': 'embeddings.cls_token',
    'pos_embed': 'embeddings.position_embeddings',
    **_modules({'patch_embed.projection': 'embeddings.patch_embeddings.projection', 'ln1': 'layernorm'}),
}
_HF_ATTENTION = {
    'attn.query': 'attention.attention.query',
    'attn.key': 'attention.attention.key',
    'attn.value': 'attention.attention.value',
    'attn.proj': 'attention.output.dense',
}

LAYOUTS: Dict[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout(
            'odis_mm',
            {**_OUR_TOP, 'object_tokens': 'object_tokens'},
            'layers.{}.',
            _OUR_PARTS,
            'backbone.',
            model='ObjectViT (registers: cls_beside_object=True, num_object_tokens=k)',
        ),
        Layout('mmpretrain', _OUR_TOP, 'layers.{}.', _OUR_PARTS, 'backbone.', model='mmpretrain.VisionTransformer'),
        Layout(
            'timm',
            {
                **_EMBED,
                'object_tokens': 'reg_token',
                **_modules({'patch_embed.projection': 'patch_embed.proj', 'ln1': 'norm'}),
            },
            'blocks.{}.',
            {**_TIMM_PARTS, 'attn.gamma1.weight': 'ls1.gamma', 'ffn.gamma2.weight': 'ls2.gamma'},
            also={'register_tokens': 'object_tokens', 'gamma_1': 'attn.gamma1.weight', 'gamma_2': 'ffn.gamma2.weight'},
            model='timm VisionTransformer(num_classes=0)',
        ),
        Layout(
            'huggingface',
            _HF_TOP,
            'encoder.layer.{}.',
            _modules(
                {
                    'ln1': 'layernorm_before',
                    **_HF_ATTENTION,
                    'ln2': 'layernorm_after',
                    'ffn.layers.0.0': 'intermediate.dense',
                    'ffn.layers.1': 'output.dense',
                }
            ),
            model='transformers ViTModel',
        ),
        Layout(
            'huggingface-dinov2',
            {**_HF_TOP, 'object_tokens': 'embeddings.register_tokens'},
            'encoder.layer.{}.',
            {
                **_modules({'ln1': 'norm1', **_HF_ATTENTION, 'ln2': 'norm2', **_MLP}),
                'attn.gamma1.weight': 'layer_scale1.lambda1',
                'ffn.gamma2.weight': 'layer_scale2.lambda1',
            },
            model='transformers Dinov2Model, Dinov2WithRegistersModel',
        ),
        Layout(
            'detectron2',
            {'pos_embed': 'pos_embed', **_modules({'patch_embed.projection': 'patch_embed.proj'})},
            'blocks.{}.',
            _TIMM_PARTS,
            'backbone.net.',
            model='detectron2 ViT in SimpleFeaturePyramid (ViTDet)',
        ),
        Layout(
            'mmseg',
            _OUR_TOP,
            'layers.{}.',
            {
                **_modules(
                    {name: name for name in ('ln1', 'ln2', 'ffn.layers.0.0', 'ffn.layers.1')}
                    | {'attn.proj': 'attn.attn.out_proj'}
                ),
                'attn.qkv.weight': 'attn.attn.in_proj_weight',
                'attn.qkv.bias': 'attn.attn.in_proj_bias',
            },
            'backbone.',
            model='mmseg VisionTransformer',
        ),
    )
}

# where a backbone stands in a file, best first: teachers, which are what is evaluated, before students
PREFIXES = (
    'teacher.backbone.',
    'backbone.net.',
    'backbone.',
    'momentum_encoder.',
    'base_encoder.',
    'vit.',
    'dinov2.',
    'dinov2_with_registers.',
    '',
)

# of tensors that stand beside a backbone under its prefix: their beginning, and why no target gets them
BESIDE = (
    ('decoder', 'decoder of masked autoencoding'),
    ('mask_token', 'used in pretraining only'),
    ('masked_embed', 'used in pretraining only'),
    ('embeddings.mask_token', 'used in pretraining only'),
    ('head', 'head of a classifier or of a pretraining method'),
    ('fc_norm.', 'norm of a classifier that averages patches'),
    ('pooler.', "head of Hugging Face's classifiers"),
    ('classifier.', 'head of a classifier'),
)

# a label for what is recognised: (label, layout, pattern that some name of the file must fit, prefix included)
_DIALECTS = (
    ('GTSA', 'timm', r'(momentum|base)_encoder\.'),
    ('MAE', 'timm', r'decoder_(embed|blocks)\.'),
    ('DINOv2', 'timm', r'(.*\.)?(register_tokens|blocks\.\d+\.\d+\..+)'),
    ('iBOT', 'timm', r'(.*\.)?(masked_embed|blocks\.\d+\.gamma_1)'),
    ('DINOv2', 'timm', r'(.*\.)?mask_token'),
    ('DINO or iBOT', 'timm', r'backbone\.'),
    ('timm', 'timm', r'(reg_token|head\..+|blocks\.0\.ls1\.gamma)'),
    ('timm, DINO, iBOT or MAE (they share these names)', 'timm', '.*'),
    ('Hugging Face ViT', 'huggingface', '.*'),
    ('Hugging Face DINOv2', 'huggingface-dinov2', '.*'),
    ('odis_mm', 'odis_mm', r'(teacher\.backbone\.|.*object_tokens$)'),
    ('odis_mm or mmpretrain (they share these names)', 'odis_mm', '.*'),
)


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


def unwrap(state: State) -> State:
    """Names without what DistributedDataParallel or torch.compile put before all of them."""
    for wrapper in ('module.', '_orig_mod.'):
        if state and all(key.startswith(wrapper) for key in state):
            state = {key[len(wrapper) :]: value for key, value in state.items()}
    return state


def recognise(names: Sequence[str]) -> Optional[Tuple[Layout, str]]:
    """The layout and the prefix of a plain ViT, by the names of a file's tensors; None if there is none."""
    for prefix in PREFIXES:
        below = [name[len(prefix) :] for name in names if name.startswith(prefix)]
        for layout in LAYOUTS.values():
            if layout.name == 'mmpretrain' or (layout.name == 'detectron2') != (prefix == 'backbone.net.'):
                continue  # mmpretrain: the same names as ours; detectron2: those of timm, told by the prefix
            if all(any(re.fullmatch(pattern, name) for name in below) for pattern in layout.signature):
                return layout, prefix
    return None


def read_vit(
    state: State, name: str = 'state dict', *, source_grid: Optional[Grid] = None, drop: Sequence[str] = ()
) -> Source:
    """Recognise a plain ViT by its names and bring it to ours, every tensor of the file accounted for.

    Args:
        state: Tensors by name, as :func:`read_checkpoint` gives them.
        name: For messages.
        source_grid: (rows, columns) of the position embedding; None: a square is deduced.
        drop: Names or beginnings of names, under the backbone's prefix, that are knowingly left out.

    Raises:
        CheckpointError: no known layout; a tensor that no plain ViT has; incomplete or contradictory blocks; NaN; a patch grid that
            cannot be told.
    """
    state = unwrap(state)
    found = recognise(list(state))
    if found is None:
        raise CheckpointError(
            f'{name} holds no plain ViT of a known layout ({", ".join(LAYOUTS)}): its tensors are named '
            f'{some(list(state))}.'
        )
    layout, prefix = found
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
        reason = (
            'as asked'
            if short.startswith(tuple(drop))
            else next((why for start, why in BESIDE if short.startswith(start)), None)
        )
        if mine is not None and reason != 'as asked':
            if mine in ours:
                raise CheckpointError(
                    f'{name} names {mine} twice (the second time {key}): it is no file of one plain ViT.'
                )
            ours[mine] = raw[short] = tensor
        elif reason is not None:
            dropped[key] = reason
        else:
            unknown.append(key)
    if unknown:
        raise CheckpointError(
            f'{name} holds {len(unknown)} tensor(s) that no plain ViT of the layout {layout.name} has ({some(unknown)}): '
            'the model would compute something else without them; leave them out knowingly with drop=.'
        )
    if layout.split_qkv:
        _merge_qkv(ours, name)
    check_vit(ours, name)
    changed = _normalise_positions(ours, layout, name, source_grid)
    dialect = next(
        (
            label
            for label, where, pattern in _DIALECTS
            if where == layout.name and any(re.match(pattern, key) for key in state)
        ),
        layout.name,
    )
    return Source(name, layout.name, dialect, prefix, ours, raw, dropped, changed, outside)


def _part(key: str) -> str:
    """What a tensor outside of the backbone belongs to."""
    pieces = key.split('.')
    return '.'.join(pieces[:2] if pieces[0] == 'teacher' else pieces[:1])


def _merge_qkv(state: State, name: str) -> None:
    for key in [key for key in state if '.attn.query.' in key]:
        names = [key.replace('.query.', f'.{part}.') for part in ('query', 'key', 'value')]
        if not all(other in state for other in names):
            raise CheckpointError(
                f'{name} is incomplete: of query, key and value it lacks {next(n for n in names if n not in state)}.'
            )
        state[key.replace('.query.', '.qkv.')] = torch.cat([state.pop(other) for other in names])


def _split_qkv(state: State) -> State:
    out = {}
    for key, tensor in state.items():
        if '.attn.qkv.' in key:
            out.update(
                {
                    key.replace('.qkv.', f'.{part}.'): piece
                    for part, piece in zip(('query', 'key', 'value'), tensor.chunk(3))
                }
            )
        else:
            out[key] = tensor
    return out


def check_vit(state: State, name: str) -> None:
    """Whether tensors under our names are one whole ViT of finite numbers.

    Raises:
        CheckpointError: naming the first thing that is not so.
    """
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
    needed = {part for part in _OUR_PARTS if 'gamma' not in part and not part.endswith('qkv.bias')} | set(wanted)
    for number, parts in sorted(blocks.items()):
        if lacking := sorted(needed - set(parts)):
            raise CheckpointError(
                f'{name} is incomplete: block {number} has no {some(lacking)} (in the names of mmpretrain).'
            )
        if wrong := [part for part in wanted if parts[part] != wanted[part]]:
            raise CheckpointError(
                f'{name} contradicts itself: {wrong[0]} is {list(parts[wrong[0]])} in block {number} but '
                f'{list(wanted[wrong[0]])} elsewhere.'
            )
    patch = state['patch_embed.projection.weight']
    width = patch.shape[0]
    shapes = {'ln1.weight': (width,), 'attn.qkv.weight': (3 * width, width), 'attn.proj.weight': (width, width)}
    wrong = [f'{part} {list(wanted[part])}' for part, shape in shapes.items() if wanted[part] != shape]
    wrong += [
        f'{key} {list(state[key].shape)}'
        for key in ('cls_token', 'pos_embed', 'object_tokens')
        if key in state and (state[key].ndim != 3 or state[key].shape[2] != width)
    ]
    if patch.ndim != 4 or wrong:
        raise CheckpointError(
            f'{name} contradicts itself: its patches are embedded by {list(patch.shape)}, which does not fit '
            f'{some(wrong)}.'
        )
    if 'pos_embed' not in state:
        raise CheckpointError(
            f'{name} has no position embedding: it is no plain ViT (rotary or relative positions are not known here).'
        )
    bad = [key for key, value in state.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if bad:
        raise CheckpointError(
            f'{name} holds NaN or Inf in {some(bad)}: that training diverged; take an earlier checkpoint.'
        )


def _normalise_positions(state: State, layout: Layout, name: str, source_grid: Optional[Grid]) -> Dict[str, str]:
    """One position slot for [CLS], if there is a [CLS], and none for registers; returns what was changed."""
    registers = state['object_tokens'].shape[1] if 'object_tokens' in state else 0
    position, changed = state['pos_embed'], {}
    slots = _leading_slots(position.shape[1], registers, layout, name, source_grid)
    if 'cls_token' not in state:
        if slots:
            state['pos_embed'] = position[:, slots:]
            changed['pos_embed'] = 'the slot of [CLS] left out, as there is no [CLS]'
    elif slots == 0:
        state['pos_embed'] = torch.cat((torch.zeros_like(position[:, :1]), position), dim=1)
        changed['pos_embed'] = 'a slot of zeros for [CLS], whose position is part of its token'
    elif slots > 1:
        state['object_tokens'] = state['object_tokens'] + position[:, 1:slots]
        state['pos_embed'] = torch.cat((position[:, :1], position[:, slots:]), dim=1)
        changed['object_tokens'] = 'their positions added to them'
    return changed


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
        lines += [f'  dropped: {name} ({why})' for name, why in _grouped({**source.dropped, **self.dropped})]
        lines += [f'  changed: {name} ({how})' for name, how in _grouped({**source.changed, **self.changed})]
        return '\n'.join(lines)


def to_timm(state_dict: State) -> State:
    """Rename an exported backbone for ``timm``'s ``VisionTransformer`` (``num_classes=0``, the same patch and image size).

    Args:
        state_dict: Tensors of a ``mmpretrain.VisionTransformer`` with [CLS] and final norm, with or without ``backbone.``.

    Returns:
        The same tensors (no copies) under timm's names.

    Raises:
        ValueError: a name that a plain ViT does not have.
    """
    renamed = {}
    for name, tensor in state_dict.items():
        key = name.removeprefix('backbone.')
        theirs = (
            None if key == 'object_tokens' else LAYOUTS['timm'].theirs(key)
        )  # registers change more than names: convert()
        if theirs is None:
            raise ValueError(f"'{name}' is no tensor of a plain mmpretrain.VisionTransformer; timm has no name for it.")
        renamed[theirs] = tensor
    return renamed


def _grouped(fates: Dict[str, str]) -> List[Tuple[str, str]]:
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
        target: Key of :data:`LAYOUTS`. 'huggingface' becomes 'huggingface-dinov2' where layer scale or registers call for it.
        grid: (rows, columns) of the patch grid to resample the position embedding to; None: as it is.
        source_grid: Its present grid; None: a square is deduced (needed to resample only).

    Raises:
        CheckpointError: an unknown target, or what :func:`read_vit` raises.
    """
    if not isinstance(source, Source):
        source = read_vit(source, source_grid=source_grid)
    state = dict(source.state)
    dropped: Dict[str, str] = {}
    changed: Dict[str, str] = {}
    scaled = 'layers.0.attn.gamma1.weight' in state
    if target == 'huggingface' and (scaled or 'object_tokens' in state):
        target = 'huggingface-dinov2'
    if target not in LAYOUTS:
        raise CheckpointError(f'there is no layout {target!r}; known are {", ".join(LAYOUTS)}.')
    layout = LAYOUTS[target]
    if grid is not None:
        _resize(state, source.name, grid, source_grid, changed)
    if scaled and not layout.layer_scale:
        changed.update(_fold_layer_scale(state))
    if target == 'huggingface-dinov2' and not scaled:
        changed.update(_unit_layer_scale(state))
    for name in [name for name in state if name in _OUR_ALL and name not in layout.top]:
        del state[name]
        dropped[name] = f'{layout.model} has no place for it'
    if (
        'object_tokens' in state and target == 'timm'
    ):  # timm's models with registers give [CLS] no position (no_embed_class)
        state['cls_token'] = state['cls_token'] + state['pos_embed'][:, :1]
        state['pos_embed'] = torch.cat((torch.zeros_like(state['cls_token']), state['pos_embed'][:, 1:]), dim=1)
        changed['cls_token'] = 'its position added to it, as timm does for models with registers (no_embed_class=True)'
    named = _split_qkv(state) if layout.split_qkv else state
    # each name that is left has one in the target
    tensors: Dict[str, Tensor] = {
        str(layout.theirs(name)): tensor.detach().contiguous() for name, tensor in named.items()
    }
    if target == 'timm' and 'object_tokens' in state:
        tensors['pos_embed'] = state['pos_embed'][:, 1:].contiguous()
    if target == 'detectron2':  # its files keep the slot of the [CLS] of pretraining; the model takes it off
        if 'cls_token' in source.state:
            state['pos_embed'] = state['pos_embed'][:, 1:]
        else:
            tensors[str(layout.theirs('pos_embed'))] = torch.cat(
                (torch.zeros_like(state['pos_embed'][:, :1]), state['pos_embed']), dim=1
            )
            changed['pos_embed'] = 'a slot of zeros for the [CLS] of pretraining, which detectron2 takes off again'
    return Conversion(
        source, layout, state, tensors, dropped, changed, not set(dropped) & {'cls_token', 'object_tokens'}
    )


_OUR_ALL = ('cls_token', 'object_tokens', 'ln1.weight', 'ln1.bias')


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


def some(names: Sequence[str], limit: int = 4) -> str:
    """A list that stays one readable line: the first few names, and how many more."""
    more = f' and {len(names) - limit} more' if len(names) > limit else ''
    return ', '.join(names[:limit]) + more
