"""Attention of a ViT whose [OBJ] rows are masked, in the form that is fastest where it runs; over all tokens or in
windows."""

from enum import Enum
from functools import cache
from typing import NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_HALF = (torch.bfloat16, torch.float16)


class Form(Enum):
    """How attention is computed.

    Only the k [OBJ] rows of T are masked. On GPUs they are computed on their own, so that the other rows keep the fused
    kernel without a mask and no T x T mask is ever built. torch's fused kernel for CPUs takes a mask at no cost; in
    half precision it is several times slower than the plain products, which are taken instead.
    """

    ROWS = 'fused, masked rows apart'
    FUSED = 'fused, with a T x T mask'
    PLAIN = 'products and a softmax'

    @classmethod
    def of(cls, x: Tensor) -> 'Form':
        """Return the form that is fastest where ``x`` is, in the precision that autocast gives its products."""
        if x.device.type != 'cpu':
            return cls.ROWS
        dtype = torch.get_autocast_dtype('cpu') if torch.is_autocast_enabled('cpu') else x.dtype
        return cls.PLAIN if dtype in _HALF else cls.FUSED


class Window(NamedTuple):
    """Attention within windows of ``size`` x ``size`` patches of a grid; the ``leading`` tokens see and are seen by
    all."""

    size: int
    grid: Tuple[int, int]
    leading: int


def mask_of(keys: Tensor, objects: slice, form: Form, like: Tensor) -> Tensor:
    """Return which keys the [OBJ] rows see, bool [B, 1, k, T], as ``form`` takes it.

    Returns:
        The same; for ``Form.FUSED`` what to add to all scores, [B, 1, T, T] in the dtype of ``like``: once for all
        blocks and heads.
    """
    if form is not Form.FUSED:
        return keys
    batch, _, _, length = keys.shape
    scores = like.new_zeros(batch, 1, length, length)
    scores[:, :, objects].masked_fill_(~keys, -torch.inf)
    return scores


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Optional[Tensor], objects: slice, form: Form, dropout: float = 0.0
) -> Tensor:
    """Return softmax(q k^T / sqrt(d)) v for [B, heads, T, d], the rows ``objects`` masked.

    Args:
        mask: From :func:`mask_of`; None: every row sees everything.
        objects: Place of the k [OBJ] rows in T.
        dropout: Of the attention's weights.
    """
    if form is Form.PLAIN:
        return _plain(q, k, v, mask, objects, dropout)
    if mask is None or form is Form.FUSED:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    first, count = objects.start, objects.stop - objects.start
    parts = q.split([first, count, q.shape[2] - first - count], dim=2)  # [CLS] sees everything, as the patches do
    rows = [
        F.scaled_dot_product_attention(part, k, v, attn_mask=keys, dropout_p=dropout)
        for part, keys in zip(parts, (None, mask, None))
        if part.shape[2]
    ]
    return torch.cat(rows, dim=2)


def attend_in_windows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Optional[Tensor],
    objects: slice,
    form: Form,
    window: Window,
    dropout: float = 0.0,
) -> Tensor:
    """Do as :func:`attend`, but a patch sees the leading tokens and the patches of its own window only (ViTDet, arXiv
    2203.16527)."""
    t = window.leading
    if mask is not None and form is Form.FUSED:
        mask = mask[:, :, :t]
    front = attend(q[:, :, :t], k, v, mask, objects, form, dropout)

    batch, heads, _, width = q.shape
    rows, columns = window.grid
    missing = -rows % window.size, -columns % window.size
    down, across = (rows + missing[0]) // window.size, (columns + missing[1]) // window.size
    count = down * across

    def cut(x: Tensor) -> Tensor:  # [B, heads, N, d] to [B * windows, heads, size^2, d]
        x = F.pad(x.unflatten(2, window.grid), (0, 0, 0, missing[1], 0, missing[0]))
        x = x.unflatten(3, (across, window.size)).unflatten(2, (down, window.size))
        return x.permute(0, 2, 4, 1, 3, 5, 6).reshape(batch * count, heads, window.size**2, width)

    def with_leading(x: Tensor) -> Tensor:
        leading = x[:, None, :, :t].expand(-1, count, -1, -1, -1).flatten(0, 1)
        return torch.cat((leading, cut(x[:, :, t:])), dim=2)

    real = None
    if any(missing):  # what was added at the border is seen by none
        inside = F.pad(q.new_ones(rows, columns, dtype=torch.bool), (0, missing[1], 0, missing[0]))
        inside = inside.unflatten(1, (across, window.size)).unflatten(0, (down, window.size))
        inside = inside.transpose(1, 2).reshape(count, 1, 1, -1)
        real = F.pad(inside, (t, 0), value=True).repeat(batch, 1, 1, 1)
    out = F.scaled_dot_product_attention(
        cut(q[:, :, t:]), with_leading(k), with_leading(v), attn_mask=real, dropout_p=dropout
    )
    out = out.unflatten(2, (window.size, window.size)).unflatten(0, (batch, down, across))
    out = out.permute(0, 3, 1, 4, 2, 5, 6).flatten(4, 5).flatten(2, 3)[:, :, :rows, :columns]
    return torch.cat((front, out.flatten(2, 3)), dim=2)


def _plain(q: Tensor, k: Tensor, v: Tensor, mask: Optional[Tensor], objects: slice, dropout: float) -> Tensor:
    with torch.autocast(q.device.type, enabled=False):  # its softmax would copy the scores to float32 and back
        batch, heads, rows, width = q.shape
        q, k, v = (part.flatten(0, 1) for part in (q, k, v))  # [B * heads, T, d]
        scores = torch.baddbmm(q.new_empty(()), q, k.mT, beta=0, alpha=width**-0.5)
        if mask is not None:  # past autograd: without weight in the softmax, these scores have no gradient in any case
            scores.detach().unflatten(0, (batch, heads))[:, :, objects].masked_fill_(~mask, -torch.inf)
        return (F.dropout(softmax(scores), dropout) @ v).view(batch, heads, rows, width)


def softmax(scores: Tensor) -> Tensor:
    """Return the softmax of scores [..., T] over T; in bf16 on CPUs it is oneDNN's, which takes about half of the time
    even with the copies to its tensors and back."""
    own = (
        type(scores) is Tensor  # not without values
        and scores.device.type == 'cpu'
        and scores.dtype is torch.bfloat16
        and not (torch.compiler.is_compiling() or torch.jit.is_tracing())
        and onednn_has_bf16()
    )
    return _Softmax.apply(scores) if own else scores.softmax(-1)


@cache
def onednn_has_bf16() -> bool:
    """Return whether torch has oneDNN, and this processor what its bf16 needs."""
    try:
        torch.zeros(1, 2, dtype=torch.bfloat16).to_mkldnn().softmax(-1)
    except RuntimeError:
        return False
    return True


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scores):
        out = scores.to_mkldnn().softmax(-1).to_dense()
        ctx.save_for_backward(out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (out,) = ctx.saved_tensors
        return torch.ops.aten._softmax_backward_data(grad, out, -1, out.dtype)
