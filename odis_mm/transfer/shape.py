"""What the tensors of a plain ViT tell about it, in one place."""

import re
from dataclasses import dataclass
from typing import Any, Dict, Optional

from torch import Tensor

from ..utils.errors import CheckpointError
from .positions import Grid, are_sines, square_grid

State = Dict[str, Tensor]

# heads of the ViTs that the papers train (T, S, B, L, H); the tensors do not tell
HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
MMPRETRAIN_SMALL = (768, 8, 2304), 8  # width, depth and MLP of its arch 'small', which is another ViT-S, and its heads
# by the dialect of the file, where its authors differ: github.com/facebookresearch/moco-v3, vits.py
HEADS_OF = {'MoCo v3': {384: 12}, 'MAE': {384: 6}}
# of those with rotary positions, where they differ: github.com/facebookresearch/dinov3, models/vision_transformer.py
ROTARY_HEADS = {**HEADS, 1280: 20, 4096: 32}


@dataclass(frozen=True)
class VitShape:
    """Read off tensors under our names (see :mod:`odis_mm.transfer.layouts`).

    Attributes:
        width, depth, patch_size, in_channels: Of the ViT.
        mlp: Hidden width of the MLPs; of gated ones that of each half.
        gated: SiLU-gated MLPs (SwiGLU).
        qkv_bias, layer_scale, final_norm, cls_token: Whether it has them.
        key_bias: False: rotary positions and a key bias of 0 (or none), as DINOv3 has it.
        registers, object_tokens: How many tokens of these kinds it has.
        patches: Positions of its learned embedding; None: rotary positions.
        head_width: Of the attention, where rotary positions tell it.
        heads_differ: ViTs of this width and kind of positions are published with different numbers of heads.
    """

    width: int
    depth: int
    patch_size: int
    in_channels: int
    mlp: int
    gated: bool
    qkv_bias: bool
    key_bias: bool
    layer_scale: bool
    final_norm: bool
    cls_token: bool
    registers: int
    object_tokens: int
    patches: Optional[int]
    head_width: Optional[int]
    heads_differ: bool

    @classmethod
    def of(cls, state: State) -> Optional['VitShape']:
        """Return the shape of a plain ViT; None if the tensors are of none."""
        patch = state.get('patch_embed.projection.weight')
        numbers = [int(match[1]) for key in state if (match := re.match(r'layers\.(\d+)\.', key))]
        if patch is None or patch.ndim != 4 or not numbers:
            return None
        gated = 'layers.0.ffn.w12.weight' in state
        mlp = state.get('layers.0.ffn.w3.weight' if gated else 'layers.0.ffn.layers.1.weight')
        bias = state.get('layers.0.attn.qkv.bias')
        rope, positions = state.get('rope.periods'), state.get('pos_embed')
        has_cls = 'cls_token' in state
        return cls(
            width=patch.shape[0],
            depth=max(numbers) + 1,
            patch_size=patch.shape[2],
            in_channels=patch.shape[1],
            mlp=0 if mlp is None or mlp.ndim != 2 else mlp.shape[1],
            gated=gated,
            qkv_bias=bias is not None,
            key_bias=rope is None or (bias is not None and has_key_bias(state)),
            layer_scale='layers.0.attn.gamma1.weight' in state,
            final_norm='ln1.weight' in state,
            cls_token=has_cls,
            registers=_count(state, 'register_tokens'),
            object_tokens=_count(state, 'object_tokens'),
            patches=None if positions is None or positions.ndim != 3 else positions.shape[1] - int(has_cls),
            head_width=None if rope is None else 4 * len(rope),
            heads_differ=patch.shape[0] in HEADS_OF['MoCo v3']
            and positions is not None
            and positions.ndim == 3
            and are_sines(positions, int(has_cls)),
        )

    @classmethod
    def required(cls, state: State) -> 'VitShape':
        """Return the shape of a plain ViT.

        Raises:
            CheckpointError: the tensors are of none.
        """
        shape = cls.of(state)
        if shape is None:
            raise CheckpointError('the tensors are not those of a plain ViT.')
        return shape

    @property
    def square(self) -> Optional[Grid]:
        """(rows, columns) of the learned positions if they are a square."""
        return square_grid(self.patches or 0)

    def grid(self, told: Optional[Grid] = None) -> Grid:
        """Return (rows, columns) of the learned positions: as told if it fits, else a square; of rotary ones any, 14 x
        14 here.

        Raises:
            CheckpointError: neither fits.
        """
        if self.patches is None:
            return (told[0], told[1]) if told else (14, 14)
        grid = (told[0], told[1]) if told else self.square
        if grid is None or grid[0] * grid[1] != self.patches:
            side = round(self.patches**0.5)
            rows, columns = grid or (side, side)
            raise CheckpointError(
                f'the position embedding has {self.patches} patches, which are not {rows} x {columns}: give the grid '
                '(--grid, --source-grid).'
            )
        return grid

    def heads(self, name: str, told: Optional[int] = None) -> int:
        """Return the attention heads: as told by the user or the file's meta, by the rotary positions, or those of the
        papers' ViT of this width.

        Raises:
            CheckpointError: an unusual width, one for which others have other heads, or heads that do not divide it.
        """
        heads = told
        if heads is None and self.heads_differ:
            raise CheckpointError(
                f'{name} is {self.width} wide with fixed positions, as MoCo v3 has it with '
                f'{HEADS_OF["MoCo v3"][self.width]} attention heads and others with {HEADS[self.width]}, and its '
                'tensors do not tell: say it (heads=, --heads); odis-mm transfer FILE OUT --to odis_mm --heads N '
                'writes a file that tells it.'
            )
        if heads is None and (self.width, self.depth, self.mlp) == MMPRETRAIN_SMALL[0]:
            heads = MMPRETRAIN_SMALL[1]
        if heads is None:
            heads = self.width // self.head_width if self.head_width else HEADS.get(self.width)
        if heads is None:
            raise CheckpointError(
                f'{name} is {self.width} wide, which is none of the usual ViTs ({", ".join(map(str, HEADS))}), and its '
                'tensors do not tell how many attention heads it has: say it (heads=, --heads); odis-mm transfer FILE '
                'OUT --to odis_mm --heads N writes a file that tells it.'
            )
        if heads < 1 or self.width % heads:
            raise CheckpointError(f'{name} is {self.width} wide, which {heads} attention heads do not divide.')
        return heads

    def backbone_options(self) -> Dict[str, Any]:
        """Return the options of ``ObjectViT`` beside its arch and patch size without which these tensors have no
        place."""
        options: Dict[str, Any] = {}
        if self.layer_scale:
            options['layer_scale_init_value'] = 1e-5
        if self.registers:
            options['num_registers'] = self.registers
        if self.patches is None:
            options['rope'] = dict(base=100)
            if not self.key_bias and self.qkv_bias:
                options['key_bias'] = False
        if self.gated:
            options['swiglu'] = True
        if not self.qkv_bias:
            options['qkv_bias'] = False
        if not self.final_norm:
            options['final_norm'] = False
        return options


def has_key_bias(state: State) -> bool:
    """Return whether a key bias of any block is not zero."""
    return any(bool(bias.chunk(3)[1].any()) for key, bias in state.items() if key.endswith('.attn.qkv.bias'))


def _count(state: State, name: str) -> int:
    return state[name].shape[1] if name in state and state[name].ndim == 3 else 0
