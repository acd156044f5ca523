"""A plain ViT whose [OBJ] token can be told which patches are the object."""
from typing import Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from mmpretrain.models import VisionTransformer
from mmpretrain.models.utils import resize_pos_embed
from mmpretrain.registry import MODELS
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@MODELS.register_module()
class ObjectViT(VisionTransformer):
    """``mmpretrain.VisionTransformer`` plus one optional argument of ``forward``: the object mask (ODIS, arXiv 2506.05409).

    With the defaults it has the same parameters under the same names, [OBJ] takes the place (and the weights) of [CLS], and
    without a mask, or with an all-ones one, it computes the same function. Pre-training needs both the tokens and
    the map, so the output is always the token sequence (``out_type='raw'``).

    Args:
        num_object_tokens: k, how many [OBJ] tokens read the object. The paper's default is 1: with more, the authors' runs collapsed.
        cls_beside_object: Keep an unmasked [CLS] in front of the [OBJ] tokens (needed by the image-level term of the loss).
            More than one leading token adds a parameter ``object_tokens`` that a stock ViT has no place for.
        with_cp: Recompute every block in the backward pass (activation checkpointing): less memory, same result.
        **kwargs: Everything ``mmpretrain.VisionTransformer`` takes; ``arch`` 'deit-small' is the ViT-S of the papers.
    """

    def __init__(self, *args, num_object_tokens: int = 1, cls_beside_object: bool = False, with_cp: bool = False, **kwargs):
        kwargs.setdefault('out_type', 'raw')
        if kwargs['out_type'] != 'raw' or not kwargs.get('with_cls_token', True):
            raise ValueError("ObjectViT returns tokens: leave out_type at 'raw' and with_cls_token at True; "
                             'detectors take the exported file into mmpretrain.VisionTransformer.')
        if num_object_tokens < 1:
            raise ValueError(f'num_object_tokens must be at least 1, got {num_object_tokens}.')
        super().__init__(*args, **kwargs)
        self.with_cp = with_cp
        self.cls_beside_object = cls_beside_object
        self.num_leading_tokens = num_object_tokens + int(cls_beside_object)
        if self.num_leading_tokens > 1:  # they carry no position: one is learned with the token itself
            self.object_tokens = nn.Parameter(torch.zeros(1, self.num_leading_tokens - 1, self.embed_dims))

    @property
    def object_slice(self) -> slice:
        """Where the [OBJ] tokens stand in the sequence; the patches follow."""
        return slice(int(self.cls_beside_object), self.num_leading_tokens)

    def init_weights(self) -> None:
        super().init_weights()
        if isinstance(self.init_cfg, dict) and self.init_cfg['type'] == 'Pretrained':
            return
        # the stock ViT leaves the token at zero, DINO and iBOT start it like the positions
        nn.init.trunc_normal_(self.cls_token, std=.02)
        if self.num_leading_tokens > 1:
            nn.init.trunc_normal_(self.object_tokens, std=.02)

    def embed(self, images: Tensor, replace: Optional[Tuple[Tensor, Tensor]] = None) -> Tuple[Tensor, Tuple[int, int]]:
        """Images to the sequence that enters the first block.

        Args:
            images: [B, 3, H, W], normalised.
            replace: (where: bool [B, N], token: [D]): patch embeddings to replace by the mask token (masked image modelling).

        Returns:
            Tokens [B, T, D], T = leading tokens + N, and the patch grid (rows, columns).
        """
        patches, grid = self.patch_embed(images)  # [B, N, D]
        if replace is not None:
            where, token = replace
            patches = torch.where(where.unsqueeze(-1), token.to(patches.dtype), patches)
        position = resize_pos_embed(self.pos_embed, self.patch_resolution, grid, self.interpolate_mode, 1)
        leading = self.cls_token + position[:, :1]
        if self.num_leading_tokens > 1:
            leading = torch.cat((leading, self.object_tokens), dim=1)
        tokens = torch.cat((leading.expand(len(images), -1, -1).to(patches.dtype), patches + position[:, 1:]), dim=1)
        return self.pre_norm(self.drop_after_pos(tokens)), grid

    def forward(self, images: Tensor, object_mask: Optional[Tensor] = None,
                replace: Optional[Tuple[Tensor, Tensor]] = None) -> Tuple[Tensor, ...]:
        """Token sequences after the blocks ``out_indices``.

        Args:
            images: [B, 3, H, W], normalised.
            object_mask: bool [B, N], the patches of the object. In every block the [OBJ] query attends to itself and to these
                patches only; patch queries attend to everything. None: all patches, an ordinary ViT.
            replace: See :meth:`embed`.

        Returns:
            One [B, T, D] per entry of ``out_indices``; the last block's is normalised.

        Raises:
            ValueError: if the mask does not fit the patch grid.
        """
        x, grid = self.embed(images, replace)
        key_mask = None if object_mask is None else self._key_mask(object_mask, x, grid)
        outs = []
        for i, layer in enumerate(self.layers):
            if self.with_cp and torch.is_grad_enabled():
                x = checkpoint(_block, layer, x, key_mask, self.object_slice, use_reentrant=False)
            else:
                x = _block(layer, x, key_mask, self.object_slice)
            if i == self.num_layers - 1 and self.final_norm:
                x = self.ln1(x)
            if i in self.out_indices:
                outs.append(x)
        return tuple(outs)

    @torch.no_grad()
    def object_attention_map(self, images: Tensor, object_mask: Optional[Tensor] = None) -> Tensor:
        """Where the [OBJ] query looks in the last block: float [B, rows, columns], mean over heads and [OBJ] tokens, for pictures.

        Args:
            images: [B, 3, H, W], normalised.
            object_mask: See :meth:`forward`; patches outside it get 0.
        """
        x, grid = self.embed(images)
        key_mask = self._key_mask(torch.ones(len(x), grid[0] * grid[1], dtype=torch.bool, device=x.device)
                                  if object_mask is None else object_mask, x, grid)
        for layer in self.layers[:-1]:
            x = _block(layer, x, key_mask, self.object_slice)
        attn = self.layers[-1].attn
        q, k, _ = attn.qkv(self.layers[-1].ln1(x)).unflatten(-1, (3, attn.num_heads, attn.head_dims)).unbind(2)  # [B, T, h, d]
        scores = torch.einsum('bqhd,bkhd->bhqk', q[:, self.object_slice], k) / attn.head_dims ** 0.5
        weights = scores.masked_fill(~key_mask, -torch.inf).softmax(-1)
        return weights.mean((1, 2))[:, self.num_leading_tokens:].unflatten(1, tuple(grid))

    def _key_mask(self, object_mask: Tensor, x: Tensor, grid: Sequence[int]) -> Tensor:
        """Which keys each [OBJ] query sees, bool [B, 1, k, T]: itself and the object's patches."""
        batch, length = x.shape[:2]
        if object_mask.shape != (batch, grid[0] * grid[1]):
            raise ValueError(f'object_mask must be bool [{batch}, {grid[0] * grid[1]}] (images, patches of the '
                             f'{grid[0]}x{grid[1]} grid), got {tuple(object_mask.shape)}.')
        first, stop = self.object_slice.start, self.object_slice.stop
        mask = torch.zeros(batch, 1, stop - first, length, dtype=torch.bool, device=x.device)
        mask[..., self.num_leading_tokens:] = object_mask.bool()[:, None, None]
        mask[:, :, range(stop - first), range(first, stop)] = True
        return mask


def _block(layer: nn.Module, x: Tensor, key_mask: Optional[Tensor], object_slice: slice) -> Tensor:
    """One of mmpretrain's encoder layers, with the object mask in its attention."""
    if key_mask is None:
        return layer(x)
    x = x + object_attention(layer.attn, layer.ln1(x), key_mask, object_slice)
    return layer.ffn(layer.ln2(x), identity=x)


def object_attention(attn: nn.Module, x: Tensor, key_mask: Tensor, object_slice: slice) -> Tensor:
    """mmpretrain's ``MultiheadAttention`` with masked [OBJ] rows.

    Only k of the T rows are masked. They are computed on their own, so that the other rows keep the fused kernel without a
    mask and no T x T mask is ever built; the cost is k rows.

    Args:
        attn: The module whose weights to use.
        x: [B, T, D].
        key_mask: bool [B, 1, k, T].
        object_slice: Place of the k [OBJ] tokens in T.
    """
    batch, length, _ = x.shape
    q, k, v = attn.qkv(x).reshape(batch, length, 3, attn.num_heads, attn.head_dims).permute(2, 0, 3, 1, 4)  # [B, h, T, d]
    dropout = attn.attn_drop if attn.training else 0.
    first, stop = object_slice.start, object_slice.stop
    rows = [F.scaled_dot_product_attention(q[:, :, first:stop], k, v, attn_mask=key_mask, dropout_p=dropout),
            F.scaled_dot_product_attention(q[:, :, stop:], k, v, dropout_p=dropout)]
    if first:  # [CLS] in front sees everything, as the patches do
        rows.insert(0, F.scaled_dot_product_attention(q[:, :, :first], k, v, dropout_p=dropout))
    out = torch.cat(rows, dim=2).transpose(1, 2).reshape(batch, length, attn.embed_dims)
    return attn.out_drop(attn.gamma1(attn.proj_drop(attn.proj(out))))
