"""A plain ViT whose [OBJ] token can be told which patches are the object."""

from contextlib import contextmanager
from types import MethodType
from typing import Callable, Iterator, List, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks.transformer import FFN
from mmpretrain.models import VisionTransformer
from mmpretrain.models.utils import resize_pos_embed
from mmpretrain.registry import MODELS
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...utils.errors import ConfigError
from ..weight_init import init_linears, trunc_normal
from .stochastic_depth import Kept, Path, Shapes, add, draw_path, select, take

OneOrMore = Union[Tensor, Sequence[Tensor], None]
_HALF = (torch.bfloat16, torch.float16)
_forms = {'cpu': True}


@contextmanager
def forms_of_gpus() -> Iterator[None]:
    """Within, attention and stochastic depth on CPUs take the form that they have on GPUs, so that what a GPU needs can be counted without
    one."""
    before, _forms['cpu'] = _forms['cpu'], False
    try:
        yield
    finally:
        _forms['cpu'] = before


def _cpu_forms(x: Tensor) -> bool:
    return x.device.type == 'cpu' and _forms['cpu']


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
        compiled: Compile the blocks (:meth:`compile_blocks`): same results; pays on GPUs, after minutes in the first steps.
        **kwargs: Everything ``mmpretrain.VisionTransformer`` takes; ``arch`` 'deit-small' is the ViT-S of the papers.
    """

    def __init__(
        self,
        *args,
        num_object_tokens: int = 1,
        cls_beside_object: bool = False,
        with_cp: bool = False,
        compiled: bool = False,
        **kwargs,
    ):
        kwargs.setdefault('out_type', 'raw')
        if kwargs['out_type'] != 'raw' or not kwargs.get('with_cls_token', True):
            raise ConfigError(
                "ObjectViT returns tokens: leave out_type at 'raw' and with_cls_token at True; "
                'detectors take the exported file into mmpretrain.VisionTransformer.'
            )
        if num_object_tokens < 1:
            raise ConfigError(f'num_object_tokens must be at least 1, got {num_object_tokens}.')
        super().__init__(*args, **kwargs)
        self.with_cp = with_cp
        self._block = _block
        self._sharded: Optional[Callable] = None
        if compiled:
            self.compile_blocks()
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
        # as in the releases; the stock ViT has Xavier's weights and random biases in the MLPs, torch's defaults in the attention, and
        # leaves the token at zero. The patch embedding keeps torch's default in both
        init_linears(self.layers)
        trunc_normal(self.pos_embed)
        trunc_normal(self.cls_token)
        if self.num_leading_tokens > 1:
            trunc_normal(self.object_tokens)

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

    def forward(
        self,
        images: OneOrMore,
        object_mask: OneOrMore = None,
        replace: Optional[Tuple[Tensor, Tensor]] = None,
        patches: OneOrMore = None,
    ) -> Union[Tuple[Tensor, ...], List[Tuple[Tensor, ...]]]:
        """Token sequences after the blocks ``out_indices``.

        Args:
            images: [B, 3, H, W], normalised; or a list of such, one for each resolution, whose tokens then share all that treats tokens one
                by one (norms, projections, MLPs) and meet in attention only with their own view's: fewer and larger products, same result.
            object_mask: bool [B, N], the patches of the object. In every block the [OBJ] query attends to itself and to these
                patches only; patch queries attend to everything. None: all patches, an ordinary ViT.
            replace: See :meth:`embed`; of the first resolution.
            patches: int64 [M], the only patches that are read from the last block's result, as indices into the flattened [B * N]; the
                leading tokens always are. What nobody reads is not computed: the last block's projection and MLP run for these alone.
                None: all.

        Returns:
            One [B, T, D] per entry of ``out_indices``; the last block's is normalised. With ``patches`` the last block's is two entries:
            leading tokens [B, t, D] and these patches [M, D], equal to the rows of the whole. A list of images gives a list of such, and
            takes lists for ``object_mask`` (with None for no mask) and ``patches``.

        Raises:
            ValueError: if the mask does not fit the patch grid.
        """
        if isinstance(images, Tensor):
            return self._forward([images], [object_mask], replace, None if patches is None else [patches])[0]
        return self._forward(images, object_mask or [None] * len(images), replace, patches)

    def _forward(
        self,
        images: Sequence[Tensor],
        object_masks: Sequence[Optional[Tensor]],
        replace: Optional[Tuple[Tensor, Tensor]],
        patches: Optional[Sequence[Tensor]],
    ) -> List[Tuple[Tensor, ...]]:
        views = [self.embed(x, replace if i == 0 else None) for i, x in enumerate(images)]
        shapes = tuple(tuple(x.shape[:2]) for x, _ in views)  # (B, T) of each resolution
        masks = tuple(
            None if mask is None else self._attention_mask(mask, x, grid)
            for mask, (x, grid) in zip(object_masks, views)
        )
        x = (
            torch.cat([x.flatten(0, 1) for x, _ in views]) if len(views) > 1 else views[0][0].flatten(0, 1)
        )  # [R, D], R = sum of B * T
        sizes = [batch * length for batch, length in shapes]
        rows = None
        if patches is not None:
            kept = [self._rows(index, *shape) + sum(sizes[:i]) for i, (index, shape) in enumerate(zip(patches, shapes))]
            rows, last_sizes = torch.cat(kept), [len(index) for index in kept]
        outs: List[List[Tensor]] = [[] for _ in views]
        for i, layer in enumerate(self.layers):
            last = i == self.num_layers - 1
            some = last and rows is not None
            # the last block's rows differ in number from step to step: it would be compiled anew each time
            block = self._sharded or (_block if some else self._block)
            # elsewhere than on a CPU the host would have to wait for the draws
            skip = block is _block and not some and _cpu_forms(x)
            args = (
                layer,
                x,
                shapes,
                masks,
                self.object_slice,
                _paths(layer, x, shapes, skip),
                rows if last else None,
                not self.with_cp,
            )
            x = (
                checkpoint(block, *args, use_reentrant=False)
                if self.with_cp and torch.is_grad_enabled()
                else block(*args)
            )
            if last and self.final_norm:
                x = self.ln1(x)
            if i in self.out_indices:
                if not last or rows is None:
                    for out, part, shape in zip(outs, x.split(sizes), shapes):
                        out.append(part.unflatten(0, shape))
                else:
                    for out, part, (batch, _) in zip(outs, x.split(last_sizes), shapes):
                        leading, rest = part.tensor_split([batch * self.num_leading_tokens])
                        out += [leading.unflatten(0, (batch, -1)), rest]
        return [tuple(out) for out in outs]

    def compile_blocks(self, **kwargs) -> None:
        """Has ``torch.compile(**kwargs)`` make kernels for whole blocks, shared by all blocks: same results.

        They are compiled in the first steps, once for each combination of resolution, object mask, and training or not.
        """
        self._block = torch.compile(_block, **{'dynamic': False, **kwargs})

    def shard_blocks(self, **kwargs) -> None:
        """Has torch's ``fully_shard(**kwargs)`` leave each rank its part of every block; a block is gathered while it runs, uncompiled."""
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        for layer in self.layers:
            layer.run = MethodType(
                _block, layer
            )  # what gathers it: the forward() of mmpretrain's layer is never called
            fully_shard(layer, **kwargs)
            register_fsdp_forward_method(layer, 'run')
        self._sharded = lambda layer, *args: layer.run(*args)

    def _rows(self, patches: Tensor, batch: int, length: int) -> Tensor:
        """Leading tokens, then ``patches``, as indices into the flattened sequences [B * T]."""
        first = self.num_leading_tokens
        start = torch.arange(batch, device=patches.device)[:, None] * length
        leading = start + torch.arange(first, device=patches.device)
        return torch.cat((leading.flatten(), patches + (patches // (length - first) + 1) * first))

    @torch.no_grad()
    def object_attention_map(self, images: Tensor, object_mask: Optional[Tensor] = None) -> Tensor:
        """Where the [OBJ] query looks in the last block: float [B, rows, columns], mean over heads and [OBJ] tokens, for pictures.

        Args:
            images: [B, 3, H, W], normalised.
            object_mask: See :meth:`forward`; patches outside it get 0.
        """
        x, grid = self.embed(images)
        if object_mask is None:
            object_mask = torch.ones(len(x), grid[0] * grid[1], dtype=torch.bool, device=x.device)
        mask = self._attention_mask(object_mask, x, grid)
        shape = tuple(x.shape[:2])
        for layer in self.layers[:-1]:
            x = _block(layer, x.flatten(0, 1), (shape,), (mask,), self.object_slice).unflatten(0, shape)
        attn = self.layers[-1].attn
        q, k, _ = (
            attn.qkv(self.layers[-1].ln1(x)).unflatten(-1, (3, attn.num_heads, attn.head_dims)).unbind(2)
        )  # [B, T, h, d]
        scores = torch.einsum('bqhd,bkhd->bhqk', q[:, self.object_slice], k) / attn.head_dims**0.5
        weights = scores.masked_fill(~self._key_mask(object_mask, x, grid), -torch.inf).softmax(-1)
        return weights.mean((1, 2))[:, self.num_leading_tokens :].unflatten(1, tuple(grid))

    def _attention_mask(self, object_mask: Tensor, x: Tensor, grid: Sequence[int]) -> Tensor:
        """The mask in the form that :func:`object_attention` takes where ``x`` is."""
        keys = self._key_mask(object_mask, x, grid)
        dtype = torch.get_autocast_dtype('cpu') if torch.is_autocast_enabled('cpu') else x.dtype
        if not _cpu_forms(x) or dtype in _HALF:
            return keys
        scores = x.new_zeros(len(x), 1, x.shape[1], x.shape[1])  # once for all blocks and heads
        scores[:, :, self.object_slice].masked_fill_(~keys, -torch.inf)
        return scores

    def _key_mask(self, object_mask: Tensor, x: Tensor, grid: Sequence[int]) -> Tensor:
        """Which keys each [OBJ] query sees, bool [B, 1, k, T]: itself and the object's patches."""
        batch, length = x.shape[:2]
        if object_mask.shape != (batch, grid[0] * grid[1]):
            raise ConfigError(
                f'object_mask must be bool [{batch}, {grid[0] * grid[1]}] (images, patches of the '
                f'{grid[0]}x{grid[1]} grid), got {tuple(object_mask.shape)}.'
            )
        first, stop = self.object_slice.start, self.object_slice.stop
        mask = torch.zeros(batch, 1, stop - first, length, dtype=torch.bool, device=x.device)
        mask[..., self.num_leading_tokens :] = object_mask.bool()[:, None, None]
        mask[:, :, range(stop - first), range(first, stop)] = True
        return mask


def _paths(layer: nn.Module, x: Tensor, shapes: Shapes, skip: bool) -> Tuple[Path, Path]:
    """Of attention and MLP. Drawn outside of the block, so that recomputing it draws nothing."""
    return (
        draw_path(getattr(layer.attn, 'out_drop', None), x, shapes, skip),
        draw_path(getattr(layer.ffn, 'dropout_layer', None), x, shapes, skip),
    )


def _block(
    layer: nn.Module,
    x: Tensor,
    shapes: Shapes,
    masks: Tuple[Optional[Tensor], ...],
    object_slice: slice,
    paths: Tuple[Path, Path] = (None, None),
    rows: Optional[Tensor] = None,
    lean: bool = False,
) -> Tensor:
    """One of mmpretrain's encoder layers, with object masks in its attention.

    Args:
        layer: The module whose weights to use.
        x: [R, D], the tokens of all resolutions one after the other.
        shapes: (B, T) of each resolution.
        masks: Of each resolution: see :func:`object_attention`.
        object_slice: Place of the k [OBJ] tokens in T.
        paths: See :func:`draw_path`.
        rows: int64, the tokens of ``x`` to return, where no path is :class:`Kept`; None: all.
        lean: See :func:`_after_norm`; nothing to gain where the whole block is recomputed.
    """
    attn, ffn = layer.attn, layer.ffn
    # one reshape, one unbind: a slice of its own would have its gradient padded with zeros and added to the others'
    qkv = _after_norm(attn.qkv, layer.ln1, x, lean, paths[0])
    if isinstance(paths[0], Kept):
        shapes = paths[0].shapes
    sizes = [batch * length for batch, length in shapes]
    dropout = attn.attn_drop if attn.training else 0.0
    parts = [
        object_attention(part.view(*shape, 3, attn.num_heads, attn.head_dims), mask, object_slice, dropout)
        for part, shape, mask in zip(qkv.split(sizes) if len(sizes) > 1 else (qkv,), shapes, select(masks, paths[0]))
        if shape[0]
    ]
    out = torch.cat(parts) if len(parts) > 1 else parts[0]
    if rows is not None:  # a token's projection and MLP depend on it alone
        out, x = out.index_select(0, rows), x.index_select(0, rows)
        paths = tuple(None if path is None else path.index_select(0, rows) for path in paths)
    x = add(x, attn.gamma1(attn.proj_drop(attn.proj(out))), paths[0])
    if not isinstance(ffn, FFN):
        return ffn(layer.ln2(x), identity=x)
    return add(x, ffn.gamma2(_after_norm(ffn.layers, layer.ln2, x, lean, paths[1])), paths[1])


def _after_norm(then: nn.Module, norm: nn.Module, x: Tensor, lean: bool, path: Path = None) -> Tensor:
    """``then(norm(x))`` of the images that ``path`` keeps. If ``lean``, the norm's result is not kept for the backward pass but computed again
    there, equal bit for bit: of all that a block keeps nothing is cheaper, and the norm's own input is kept in any case. A compiler decides
    that for itself."""
    if not lean or torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return then(take(norm(x), path))
    device = x.device.type
    half = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None

    def normed() -> Tensor:
        with torch.autocast(device, half, enabled=half is not None):
            y = norm(x)
        return take(y, path, half)  # autocast would make it ``half`` within ``then``, in a copy that nobody here knew

    @torch.no_grad()
    def again() -> Tensor:
        return normed()

    y = normed()
    shape, storage = y.shape, y.untyped_storage()._cdata

    def pack(kept: Tensor) -> Union[Tensor, Callable]:  # weights and all else pass through
        return again if kept.shape == shape and kept.untyped_storage()._cdata == storage else kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: again() if kept is again else kept):
        return then(y)


def object_attention(qkv: Tensor, mask: Optional[Tensor], object_slice: slice, dropout: float = 0.0) -> Tensor:
    """Attention with masked [OBJ] rows.

    Only k of the T rows are masked. On GPUs they are computed on their own, so that the other rows keep the fused kernel without a
    mask and no T x T mask is ever built. torch's fused kernel for CPUs takes a mask at no cost; in half precision it is several times
    slower than the plain products, which are taken instead.

    Args:
        qkv: [B, T, 3, heads, d].
        mask: Which keys the k [OBJ] queries see, bool [B, 1, k, T], or the same as what to add to all scores, float [B, 1, T, T]; None:
            everything.
        object_slice: Place of the k [OBJ] tokens in T.
        dropout: Of the attention's weights.

    Returns:
        [B * T, D].
    """
    # one unbind, of the layout as it is: its gradient is put together in one pass
    q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))  # [B, heads, T, d]
    if _cpu_forms(q) and q.dtype in _HALF:
        out = _plain_attention(q, k, v, mask, object_slice, dropout)
    elif mask is None or mask.is_floating_point():
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    else:
        first, count = object_slice.start, object_slice.stop - object_slice.start
        front, objects, rest = q.split([first, count, q.shape[2] - first - count], dim=2)
        rows = [
            F.scaled_dot_product_attention(objects, k, v, attn_mask=mask, dropout_p=dropout),
            F.scaled_dot_product_attention(rest, k, v, dropout_p=dropout),
        ]
        if first:  # [CLS] in front sees everything, as the patches do
            rows.insert(0, F.scaled_dot_product_attention(front, k, v, dropout_p=dropout))
        out = torch.cat(rows, dim=2)
    return out.transpose(1, 2).flatten(2).flatten(0, 1)


def _plain_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Optional[Tensor], object_slice: slice, dropout: float
) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, mask bool [B, 1, k, T] of the [OBJ] rows."""
    with torch.autocast(q.device.type, enabled=False):  # its softmax would copy the scores to float32 and back
        shape = q.shape
        q, k, v = (part.flatten(0, 1) for part in (q, k, v))  # [B * h, T, d]
        scores = torch.baddbmm(q.new_empty(()), q, k.mT, beta=0, alpha=shape[-1] ** -0.5)  # [B * h, T, T]
        if mask is not None:  # past autograd: without weight in the softmax, these scores have no gradient in any case
            scores.detach().unflatten(0, shape[:2])[:, :, object_slice].masked_fill_(~mask, -torch.inf)
        return (F.dropout(scores.softmax(-1), dropout) @ v).view(shape)
