"""A block of an ObjectViT: mmpretrain's encoder layer with object masks, rotary positions, windows and skipped rows."""

from typing import Callable, List, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks.transformer import FFN
from torch import Tensor, nn

from ..linear import linear
from .attention import Form, Window, attend, attend_in_windows
from .recompute import recomputed
from .rope import Rope, rotate
from .stochastic_depth import PARTIAL, Path, Shapes, add, select, take

Grid = Tuple[int, int]


class Sequences(NamedTuple):
    """What the tokens [R, D] of one or several resolutions are, which stand one after the other: R = sum of B * T.

    Attributes:
        shapes: (B, T) of each resolution.
        grids: Patches (rows, columns) of each; T = leading tokens + rows * columns.
        masks: Which keys the [OBJ] rows see, see :func:`mask_of`; None: all.
        ropes: Rotary positions; None: the tokens carry theirs.
        objects: Place of the k [OBJ] tokens in T.
        form: Of the attention.
        readers: Of a single resolution: which keys the last n tokens of T see, bool [B, 1, n, T]; the others see none
            of these n.
    """

    shapes: Shapes
    grids: Tuple[Grid, ...]
    masks: Tuple[Optional[Tensor], ...]
    ropes: Tuple[Optional[Rope], ...]
    objects: slice
    form: Form
    readers: Optional[Tensor] = None

    @property
    def sizes(self) -> List[int]:
        """Rows of each resolution."""
        return [batch * length for batch, length in self.shapes]


class QKVWithoutKeyBias(nn.Linear):
    """Queries, keys and values in one product, the keys without a bias: the middle third of ``bias`` counts as 0 and
    gets no gradient."""

    def forward(self, x: Tensor) -> Tensor:
        """Return queries, keys and values side by side: [..., D] -> [..., 3 D]."""
        query, key, value = self.bias.chunk(3)
        return linear(x, self.weight, torch.cat((query, torch.zeros_like(key), value)))

    @torch.no_grad()
    def clear(self) -> None:
        """Set that third to 0, for those who read the file with another model."""
        self.bias.chunk(3)[1].zero_()


def run_block(
    layer: nn.Module,
    x: Tensor,
    sequences: Sequences,
    paths: Tuple[Path, Path] = (None, None),
    rows: Optional[Tensor] = None,
    lean: bool = False,
    window: Optional[Tuple[int, int]] = None,
) -> Tensor:
    """Run one of mmpretrain's encoder layers, with object masks, rotary positions and windows in its attention.

    Args:
        layer: The module whose weights to use.
        x: [R, D], the tokens of all resolutions one after the other.
        sequences: What they are.
        paths: Of attention and MLP, see :func:`draw_path`.
        rows: int64, the tokens of ``x`` to return, where both paths are of all images; None: all.
        lean: Do not keep the norms' results for the backward pass; nothing to gain where the whole block is recomputed.
        window: See :meth:`ObjectViT.window_of`.
    """
    attn, ffn = layer.attn, layer.ffn
    # one reshape, one unbind: a slice of its own would have its gradient padded with zeros and added to the others'
    qkv = after_norm(attn.qkv, layer.ln1, take(x, paths[0]), lean)
    out = _attention(attn, qkv, sequences, paths[0], window)
    if rows is not None:  # a token's projection and MLP depend on it alone
        out, x = out.index_select(0, rows), x.index_select(0, rows)
        paths = tuple(None if path is None else path.index_select(0, rows) for path in paths)
    x = add(x, attn.gamma1(attn.proj_drop(attn.proj(out))), paths[0])
    return add(x, ffn.gamma2(after_norm(_mlp(ffn), layer.ln2, take(x, paths[1]), lean)), paths[1])


def _attention(
    attn: nn.Module, qkv: Tensor, sequences: Sequences, path: Path, window: Optional[Tuple[int, int]]
) -> Tensor:
    """[R, 3 D] to [R, D] before the projection, each view among its own tokens; of a path of some images those."""
    shapes = path.shapes if isinstance(path, PARTIAL) else sequences.shapes
    masks = select(sequences.masks, path)
    sizes = [batch * length for batch, length in shapes]
    parts = qkv.split(sizes) if len(sizes) > 1 else (qkv,)
    dropout = attn.attn_drop if attn.training else 0.0
    outs = []
    for part, shape, grid, mask, rope in zip(parts, shapes, sequences.grids, masks, sequences.ropes):
        if not shape[0]:
            continue
        # one unbind, of the layout as it is: its gradient is put together in one pass
        q, k, v = part.view(*shape, 3, attn.num_heads, attn.head_dims).unbind(2)
        q, k, v = (head.transpose(1, 2) for head in (q, k, v))  # [B, heads, T, d]
        q, k = rotate(q, rope), rotate(k, rope)
        read = None
        if sequences.readers is not None:
            count = sequences.readers.shape[2]
            read = F.scaled_dot_product_attention(q[:, :, -count:], k, v, attn_mask=sequences.readers)
            q, k, v = (head[:, :, :-count] for head in (q, k, v))
        common = mask, sequences.objects, sequences.form
        if window is None:
            out = attend(q, k, v, *common, dropout)
        else:
            out = attend_in_windows(q, k, v, *common, Window(window[0], grid, window[1]), dropout)
        if read is not None:
            out = torch.cat((out, read), dim=2)
        outs.append(out.transpose(1, 2).flatten(2).flatten(0, 1))
    return torch.cat(outs) if len(outs) > 1 else outs[0]


def _mlp(ffn: nn.Module) -> Callable[[Tensor], Tensor]:
    """The layers of an MLP without scale, drop path and identity."""
    if isinstance(ffn, FFN):
        return ffn.layers

    def gated(x: Tensor) -> Tensor:
        gate, value = ffn.w12(x).chunk(2, dim=-1)
        return ffn.w3(ffn.norm(F.silu(gate) * value))

    return gated


def after_norm(then: Callable[[Tensor], Tensor], norm: nn.Module, x: Tensor, lean: bool) -> Tensor:
    """Return ``then(norm(x))``.

    If ``lean``, the norm's result is not kept for the backward pass: of all that a block keeps nothing is cheaper to
    compute again. A compiler decides that for itself.
    """
    if not lean or torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return then(norm(x))
    device = x.device.type
    half = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None

    def normed() -> Tensor:
        with torch.autocast(device, half, enabled=half is not None):
            y = norm(x)
        # else autocast would cast it within ``then``, to a copy kept for the backward pass
        return y.to(half or y.dtype)

    return recomputed(normed, then)
