"""Stochastic depth (Huang et al., arXiv 1603.09382) by image, which can leave dropped branches uncomputed."""

from typing import Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import torch
from mmcv.cnn.bricks import DropPath
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Shapes = Tuple[Tuple[int, int], ...]


class Kept(NamedTuple):
    """The images of which a residual branch is computed.

    Attributes:
        images: Of each resolution, their indices [n]; None: all.
        shapes: (n, T) of each resolution.
        pieces: Rows of the tokens [R, D] of all images, one after the other: how many, and whether they are kept.
        scale: What the branch is multiplied by, 1/(1 - p).
    """

    images: Tuple[Optional[Tensor], ...]
    shapes: Shapes
    pieces: Tuple[Tuple[int, bool], ...]
    scale: float


Path = Union[Tensor, Kept, None]


def draw_path(drop: Optional[nn.Module], x: Tensor, shapes: Shapes, skip: bool) -> Path:
    """What becomes of a residual branch, drawn for each image.

    Args:
        drop: A ``DropPath``; anything else, or one that is off, drops nothing.
        x: [R, D], for its dtype and device.
        shapes: (B, T) of each resolution; R = sum of B * T.
        skip: Leave what is dropped uncomputed: needs the draws on the host, at once.

    Returns:
        What to multiply the branch by, [R, 1], 0 or 1/(1 - p); with ``skip``, :class:`Kept`, unless nothing is kept:
        the branch's parameters then still get gradients, of zero. None: nothing is dropped.
    """
    if not isinstance(drop, DropPath) or not drop.training or not drop.drop_prob:
        return None
    keep, images = 1 - drop.drop_prob, sum(batch for batch, _ in shapes)
    drawn = (keep + torch.rand((images, 1), dtype=x.dtype, device=x.device)).floor_()
    if skip:
        flags = drawn.bool().flatten().tolist()
        if any(flags):
            return keep_images(flags, shapes, 1 / keep)
    parts = drawn.div_(keep).split([batch for batch, _ in shapes])
    return torch.cat([part.expand(-1, length).flatten() for part, (_, length) in zip(parts, shapes)])[:, None]


def keep_images(flags: List[bool], shapes: Shapes, scale: float) -> Kept:
    """The path that computes a branch for the images whose flag is set, over all resolutions in their order."""
    images, sizes, pieces, first = [], [], [], 0
    for batch, length in shapes:
        own = flags[first : first + batch]
        first += batch
        images.append(None if all(own) else torch.tensor([i for i, flag in enumerate(own) if flag], dtype=torch.int64))
        sizes.append((sum(own), length))
        for flag in own:
            if pieces and pieces[-1][1] == flag:
                pieces[-1] = (pieces[-1][0] + length, flag)
            else:
                pieces.append((length, flag))
    return Kept(tuple(images), tuple(sizes), tuple(pieces), scale)


def take(x: Tensor, path: Path, dtype: Optional[torch.dtype] = None) -> Tensor:
    """The rows of x [R, D] of the kept images, as ``dtype``, in one pass."""
    dtype = dtype or x.dtype
    if not isinstance(path, Kept) or len(path.pieces) == 1:
        return x.to(dtype)
    return _Take.apply(x, path.pieces, dtype)


def add(x: Tensor, branch: Tensor, path: Path) -> Tensor:
    """x [R, D] + scale * branch, in one pass; of a :class:`Kept` path the branch has the kept rows only."""
    if path is None:
        return x + branch
    if isinstance(path, Kept):
        return _Add.apply(x, branch, path.pieces, path.scale)
    return torch.addcmul(x, branch, path)


def select(masks: Sequence[Optional[Tensor]], path: Path) -> Tuple[Optional[Tensor], ...]:
    """Of each resolution's mask [B, ...] the kept images'."""
    if not isinstance(path, Kept):
        return tuple(masks)
    return tuple(
        mask if mask is None or images is None else mask.index_select(0, images)
        for mask, images in zip(masks, path.images)
    )


def _pairs(
    whole: Tensor, part: Tensor, pieces: Sequence[Tuple[int, bool]]
) -> Iterator[Tuple[Tensor, Optional[Tensor]]]:
    """Pieces of the whole, each beside its piece of the kept part, or None."""
    kept = iter(part.split([rows for rows, flag in pieces if flag]))
    for piece, (_, flag) in zip(whole.split([rows for rows, _ in pieces]), pieces):
        yield piece, next(kept) if flag else None


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, pieces, dtype):
        ctx.pieces, ctx.rows, ctx.dtype = pieces, len(x), x.dtype
        out = x.new_empty((sum(rows for rows, flag in pieces if flag), x.shape[1]), dtype=dtype)
        for whole, part in _pairs(x, out, pieces):
            if part is not None:
                part.copy_(whole)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        out = grad.new_empty((ctx.rows, grad.shape[1]), dtype=ctx.dtype)
        for whole, part in _pairs(out, grad, ctx.pieces):
            whole.zero_() if part is None else whole.copy_(part)
        return out, None, None


class _Add(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, branch, pieces, scale):
        ctx.pieces, ctx.scale, ctx.rows, ctx.dtypes = pieces, scale, len(branch), (x.dtype, branch.dtype)
        out = x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, branch.dtype))
        written = iter(out.split([rows for rows, _ in pieces]))
        for whole, part in _pairs(x, branch, pieces):
            target = next(written)
            target.copy_(whole) if part is None else torch.add(whole, part, alpha=scale, out=target)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        of_x, of_branch = ctx.dtypes
        out = grad.new_empty((ctx.rows, grad.shape[1]), dtype=of_branch)
        for whole, part in _pairs(grad, out, ctx.pieces):
            if part is not None:
                torch.mul(whole, ctx.scale, out=part)
        return grad.to(of_x), out, None, None
