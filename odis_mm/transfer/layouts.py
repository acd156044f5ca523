"""The names under which other libraries keep a plain ViT.

In the middle stand the names of ``mmpretrain.VisionTransformer`` ("ours" below), with what ``ObjectViT`` has beside
them: ``object_tokens`` [1, k, D] and ``register_tokens`` [1, R, D], leading tokens without a position; ``rope.periods``
of rotary positions in place of ``pos_embed``; ``ffn.w12`` and ``ffn.w3`` of gated MLPs. A layout is a table of names;
what a library keeps in another form is turned into one that computes the same by :mod:`odis_mm.transfer.conversion`.
"""

import re
from dataclasses import dataclass, field
from typing import Dict, Mapping, Optional, Sequence, Tuple

from .shape import State


def _modules(pairs: Mapping[str, str]) -> Dict[str, str]:
    return {f'{ours}.{leaf}': f'{theirs}.{leaf}' for ours, theirs in pairs.items() for leaf in ('weight', 'bias')}


@dataclass(frozen=True)
class Layout:
    """One library's names.

    Attributes:
        name: As it is asked for.
        top: Our name -> its name, outside the blocks; what is not named here, the library cannot hold.
        block: How a block begins, '{}' being its number.
        parts: Our name -> its name within a block. ``attn.query``, ``attn.key`` and ``attn.value`` in place of
            ``attn.qkv`` if it keeps them apart; no ``gamma`` if it has no layer scale.
        gated: The same of gated MLPs; ``ffn.gate`` and ``ffn.value`` in place of ``ffn.w12`` if it keeps them apart.
            Empty: it has none.
        prefix: What stands before every name in a file that this package writes.
        also: Further names that are read as ours: within the layout's dialects.
        model: What the file is for, in words.
        norm_eps: Of the library's models, which tensors do not tell.
        marks: Names that a file must have, as other layouts share the rest.
    """

    name: str
    top: Mapping[str, str]
    block: str
    parts: Mapping[str, str]
    gated: Mapping[str, str] = field(default_factory=dict)
    prefix: str = ''
    also: Mapping[str, str] = field(default_factory=dict)
    model: str = ''
    norm_eps: float = 1e-6
    marks: Sequence[str] = ()

    @property
    def split_qkv(self) -> bool:
        """Whether queries, keys and values are tensors of their own."""
        return 'attn.query.weight' in self.parts

    @property
    def layer_scale(self) -> bool:
        """Whether it has a place for layer scale."""
        return 'attn.gamma1.weight' in self.parts

    @property
    def rotary(self) -> bool:
        """Whether it has rotary positions and no learned ones."""
        return 'pos_embed' not in self.top

    @property
    def signature(self) -> Tuple[str, ...]:
        """Names that a file of this layout has, as patterns."""
        block = re.escape(self.block).replace(r'\{\}', r'(?:\d+\.)?0')  # DINOv2 chunks: blocks.<chunk>.<block>
        parts = 'attn.query.weight' if self.split_qkv else 'attn.qkv.weight', 'ln1.weight'
        return (
            re.escape(self.top['patch_embed.projection.weight']),
            *(block + re.escape(self.parts[part]) for part in parts),
            *map(re.escape, self.marks),
        )

    def ours(self, name: str) -> Optional[str]:
        """Return our name for one of this layout's; None if there is none."""
        top = {theirs: ours for ours, theirs in self.top.items()}
        if name in top:
            return top[name]
        match = re.fullmatch(re.escape(self.block).replace(r'\{\}', r'(?:\d+\.)?(\d+)') + '(.+)', name)
        if match is None:
            return self.also.get(name)
        parts = {theirs: ours for names in (self.gated, self.parts) for ours, theirs in names.items()}
        part = parts.get(match[2], self.also.get(match[2]))
        return None if part is None else f'layers.{int(match[1])}.{part}'

    def theirs(self, name: str, gated: bool = False) -> Optional[str]:
        """Return this layout's name for one of ours, with its prefix; None if it cannot hold it. ``gated``: of a ViT
        with gated MLPs."""
        match = re.fullmatch(r'layers\.(\d+)\.(.+)', name)
        parts = {**self.parts, **self.gated} if gated else self.parts
        found = self.top.get(name) if match is None else parts.get(match[2])
        if found is None:
            return None
        return self.prefix + (found if match is None else self.block.format(match[1]) + found)


_EMBED = dict(cls_token='cls_token', pos_embed='pos_embed')
_MLP = {'ffn.layers.0.0': 'mlp.fc1', 'ffn.layers.1': 'mlp.fc2'}
_OUR_TOP = {**_EMBED, **_modules({'patch_embed.projection': 'patch_embed.projection', 'ln1': 'ln1'})}
OUR_PARTS = {
    **_modules({name: name for name in ('ln1', 'attn.qkv', 'attn.proj', 'ln2', 'ffn.layers.0.0', 'ffn.layers.1')}),
    'attn.gamma1.weight': 'attn.gamma1.weight',
    'ffn.gamma2.weight': 'ffn.gamma2.weight',
}
_OUR_GATED = _modules({'ffn.w12': 'ffn.w12', 'ffn.w3': 'ffn.w3'})
_TIMM_PARTS = _modules({'ln1': 'norm1', 'attn.qkv': 'attn.qkv', 'attn.proj': 'attn.proj', 'ln2': 'norm2', **_MLP})
_HF_TOP = {
    'cls_token': 'embeddings.cls_token',
    'pos_embed': 'embeddings.position_embeddings',
    **_modules({'patch_embed.projection': 'embeddings.patch_embeddings.projection', 'ln1': 'layernorm'}),
}
_V3_TOP = {'cls_token': 'cls_token', **_modules({'patch_embed.projection': 'patch_embed.proj', 'ln1': 'norm'})}
_V3_BLOCK = {'ln1': 'norm1', 'attn.proj': 'attn.proj', 'ln2': 'norm2'}
_HF_ATTENTION = {
    'attn.query': 'attention.attention.query',
    'attn.key': 'attention.attention.key',
    'attn.value': 'attention.attention.value',
    'attn.proj': 'attention.output.dense',
}

_PERIODS = {'rope.periods': 'rope.periods'}

LAYOUTS: Dict[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout(
            'odis_mm',
            {**_OUR_TOP, 'object_tokens': 'object_tokens', 'register_tokens': 'register_tokens', **_PERIODS},
            'layers.{}.',
            OUR_PARTS,
            _OUR_GATED,
            'backbone.',
            model='ObjectViT',
        ),
        Layout(
            'mmpretrain', _OUR_TOP, 'layers.{}.', OUR_PARTS, prefix='backbone.', model='mmpretrain.VisionTransformer'
        ),
        Layout(
            'timm',
            {
                **_EMBED,
                'register_tokens': 'reg_token',
                **_modules({'patch_embed.projection': 'patch_embed.proj', 'ln1': 'norm'}),
            },
            'blocks.{}.',
            {**_TIMM_PARTS, 'attn.gamma1.weight': 'ls1.gamma', 'ffn.gamma2.weight': 'ls2.gamma'},
            _modules({'ffn.w12': 'mlp.fc1', 'ffn.w3': 'mlp.fc2'}),
            also={
                **_modules({'mlp.w12': 'ffn.w12', 'mlp.w3': 'ffn.w3'}),
                'register_tokens': 'register_tokens',
                'gamma_1': 'attn.gamma1.weight',
                'gamma_2': 'ffn.gamma2.weight',
            },
            model='timm VisionTransformer(num_classes=0)',
        ),
        Layout(
            'dinov3',
            {**_V3_TOP, 'register_tokens': 'storage_tokens', 'rope.periods': 'rope_embed.periods'},
            'blocks.{}.',
            {
                **_modules({**_V3_BLOCK, 'attn.qkv': 'attn.qkv', **_MLP}),
                'attn.qkv.bias_mask': 'attn.qkv.bias_mask',
                'attn.gamma1.weight': 'ls1.gamma',
                'ffn.gamma2.weight': 'ls2.gamma',
            },
            _modules({'ffn.gate': 'mlp.w1', 'ffn.value': 'mlp.w2', 'ffn.w3': 'mlp.w3'}),
            model="DINOv3's own models",
            norm_eps=1e-5,
            marks=('rope_embed.periods',),
        ),
        Layout(
            'timm-dinov3',
            {**_V3_TOP, 'register_tokens': 'reg_token'},
            'blocks.{}.',
            {
                **_modules({**_V3_BLOCK, **_MLP}),
                'attn.qkv.weight': 'attn.qkv.weight',
                'attn.query.bias': 'attn.q_bias',
                'attn.value.bias': 'attn.v_bias',
                'attn.gamma1.weight': 'gamma_1',
                'ffn.gamma2.weight': 'gamma_2',
            },
            _modules({'ffn.gate': 'mlp.fc1_g', 'ffn.value': 'mlp.fc1_x', 'ffn.w3': 'mlp.fc2'}),
            model='timm Eva of DINOv3 (num_classes=0)',
            norm_eps=1e-5,
            marks=('reg_token', 'blocks.0.gamma_1'),
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
            {**_HF_TOP, 'register_tokens': 'embeddings.register_tokens'},
            'encoder.layer.{}.',
            {
                **_modules({'ln1': 'norm1', **_HF_ATTENTION, 'ln2': 'norm2', **_MLP}),
                'attn.gamma1.weight': 'layer_scale1.lambda1',
                'ffn.gamma2.weight': 'layer_scale2.lambda1',
            },
            _modules({'ffn.w12': 'mlp.weights_in', 'ffn.w3': 'mlp.weights_out'}),
            model='transformers Dinov2Model, Dinov2WithRegistersModel',
        ),
        Layout(
            'huggingface-dinov3',
            {
                'cls_token': 'embeddings.cls_token',
                'register_tokens': 'embeddings.register_tokens',
                **_modules({'patch_embed.projection': 'embeddings.patch_embeddings', 'ln1': 'norm'}),
            },
            'layer.{}.',
            {
                **_modules({'ln1': 'norm1', 'ln2': 'norm2', 'attn.proj': 'attention.o_proj'}),
                **_modules({f'attn.{part}': f'attention.{part[0]}_proj' for part in ('query', 'key', 'value')}),
                **_modules({'ffn.layers.0.0': 'mlp.up_proj', 'ffn.layers.1': 'mlp.down_proj'}),
                'attn.gamma1.weight': 'layer_scale1.lambda1',
                'ffn.gamma2.weight': 'layer_scale2.lambda1',
            },
            _modules({'ffn.gate': 'mlp.gate_proj', 'ffn.value': 'mlp.up_proj', 'ffn.w3': 'mlp.down_proj'}),
            model='transformers DINOv3ViTModel',
            norm_eps=1e-5,
        ),
        Layout(
            'detectron2',
            {'pos_embed': 'pos_embed', **_modules({'patch_embed.projection': 'patch_embed.proj'})},
            'blocks.{}.',
            _TIMM_PARTS,
            prefix='backbone.net.',
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
            prefix='backbone.',
            model="mmseg VisionTransformer(patch_bias=True, norm_cfg=dict(type='LN', eps=1e-6))",
        ),
    )
}
"""Layouts of ViT checkpoints, by the name that ``odis-mm transfer --to`` takes."""

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
    ('local_cls_norm', 'norm of the small views of pretraining'),
    ('head', 'head of a classifier or of a pretraining method'),
    ('fc_norm.', 'norm of a classifier that averages patches'),
    ('ln2.', 'norm of a classifier that averages patches'),  # mmpretrain's out_type='avg_featmap'
    ('pooler.', "head of Hugging Face's classifiers"),
    ('classifier.', 'head of a classifier'),
)

# a label for what is recognised: (label, layout, pattern that some name of the file must fit, prefix included)
DIALECTS = (
    ('MoCo v3', 'timm', r'(momentum|base)_encoder\.head\.\d'),  # its projector, within the encoder
    ('GTSA', 'timm', r'(momentum|base)_encoder\.'),
    ('MAE', 'timm', r'decoder_(embed|blocks)\.'),
    ('DINOv2', 'timm', r'(.*\.)?(register_tokens|blocks\.\d+\.\d+\..+)'),
    ('iBOT', 'timm', r'(.*\.)?(masked_embed|blocks\.\d+\.gamma_1)'),
    ('DINOv2', 'timm', r'(.*\.)?mask_token'),
    ('DINO or iBOT', 'timm', r'backbone\.'),
    ('timm', 'timm', r'(reg_token|head\..+|blocks\.0\.ls1\.gamma)'),
    ('DINOv3', 'dinov3', '.*'),
    ('timm DINOv3', 'timm-dinov3', '.*'),
    ('Hugging Face DINOv3', 'huggingface-dinov3', '.*'),
    ('timm, DINO, iBOT or MAE (they share these names)', 'timm', '.*'),
    ('Hugging Face ViT', 'huggingface', '.*'),
    ('Hugging Face DINOv2', 'huggingface-dinov2', '.*'),
    ('odis_mm', 'odis_mm', r'(teacher\.backbone\.|.*(object_tokens|register_tokens|rope\.periods)$)'),
    ('odis_mm or mmpretrain (they share these names)', 'odis_mm', '.*'),
)


def unwrap(state: State) -> State:
    """Return the names without what DistributedDataParallel or torch.compile put before all of them."""
    for wrapper in ('module.', '_orig_mod.', 'module.'):  # either may be around the other
        if state and all(key.startswith(wrapper) for key in state):
            state = {key[len(wrapper) :]: value for key, value in state.items()}
    return state


def recognise(names: Sequence[str]) -> Optional[Tuple[Layout, str]]:
    """Return the layout and the prefix of a plain ViT, by the names of a file's tensors; None if there is none."""
    for prefix in PREFIXES:
        below = [name[len(prefix) :] for name in names if name.startswith(prefix)]
        for layout in sorted(LAYOUTS.values(), key=lambda layout: not layout.marks):
            if layout.name == 'mmpretrain' or (layout.name == 'detectron2') != (prefix == 'backbone.net.'):
                continue  # mmpretrain: the same names as ours; detectron2: those of timm, told by the prefix
            if layout.rotary and 'pos_embed' in below:
                continue
            if all(any(re.fullmatch(pattern, name) for name in below) for pattern in layout.signature):
                return layout, prefix
    return None


def some(names: Sequence[str], limit: int = 4) -> str:
    """Return a list that stays one readable line: the first few names, and how many more."""
    more = f' and {len(names) - limit} more' if len(names) > limit else ''
    return ', '.join(names[:limit]) + more
