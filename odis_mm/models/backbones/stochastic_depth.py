"""Stochastic depth (Huang et al., arXiv 1603.09382) by image, which can leave dropped branches uncomputed."""

from typing import Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import torch
from mmcv.cnn.bricks import DropPath
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Shapes = Tuple[Tuple[int, int], ...]


class Kept(NamedTuple):
    """The images of which a residual branch is computed, known to the host.

    Attributes:
        images: Of each resolution, their indices [n]; None: all.
        shapes: (n, T) of each resolution.
        pieces: Rows of the tokens [R, D] of all images, one after the other: how many, and what their branch is
            multiplied by; 0: it is not computed.
    """

    images: Tuple[Optional[Tensor], ...]
    shapes: Shapes
    pieces: Tuple[Tuple[int, float], ...]


class Subset(NamedTuple):
    """As many images as the host knows, of which a residual branch is computed; which ones, only the device knows.

    Attributes:
        images: Of each resolution, their indices [n], int64.
        shapes: (n, T) of each resolution.
        whole: (B, T) of each resolution.
        scales: What the branch is multiplied by, B / n, of each resolution.
    """

    images: Tuple[Tensor, ...]
    shapes: Shapes
    whole: Shapes
    scales: Tuple[float, ...]


Path = Union[Tensor, Kept, Subset, None]
PARTIAL = (Kept, Subset)  # paths whose branch is computed for some of the images


def draw_path(drop: Optional[nn.Module], x: Tensor, shapes: Shapes, skip: bool) -> Path:
    """Draw what becomes of a residual branch, drawn for each image.

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
            return keep_images(flags, shapes, [1 / keep] * len(shapes))
    parts = drawn.div_(keep).split([batch for batch, _ in shapes])
    return torch.cat([part.expand(-1, length).flatten() for part, (_, length) in zip(parts, shapes)])[:, None]


def draw_subset(drop: Optional[nn.Module], x: Tensor, shapes: Shapes, skip: bool, rows: bool = False) -> Path:
    """Do as :func:`draw_path`, but of each resolution the number of images that are kept is fixed: B (1 - p), rounded,
    and at least 1.

    An image is kept with probability n / B, and its branch multiplied by B / n: the expectation is the branch, for any
    rounding. As the host knows all sizes, what is dropped is left uncomputed on GPUs, too, and nothing waits for the
    draws (DINOv2's training, arXiv 2304.07193).

    Args:
        drop, x, shapes: See there.
        skip: Return :class:`Kept`, which has fewer passes over the tokens: where drawing is on the host.
        rows: Return what to multiply the branch by, [R, 1]: where it is computed for single tokens.

    Returns:
        That, or :class:`Subset`. None: nothing is dropped.
    """
    if not isinstance(drop, DropPath) or not drop.training or not drop.drop_prob:
        return None
    counts = [max(1, round(batch * (1 - drop.drop_prob))) for batch, _ in shapes]
    if all(count == batch for count, (batch, _) in zip(counts, shapes)):
        return None
    images = [torch.rand(batch, device=x.device).argsort()[:count] for count, (batch, _) in zip(counts, shapes)]
    scales = [batch / count for count, (batch, _) in zip(counts, shapes)]
    if rows:
        parts = [
            x.new_zeros(batch).index_fill(0, kept, scale)[:, None].expand(-1, length).flatten()
            for kept, scale, (batch, length) in zip(images, scales, shapes)
        ]
        return torch.cat(parts)[:, None]
    if skip:
        flags = [torch.zeros(batch, dtype=torch.bool).index_fill(0, i, True) for i, (batch, _) in zip(images, shapes)]
        return keep_images(torch.cat(flags).tolist(), shapes, scales)
    sizes = tuple((count, length) for count, (_, length) in zip(counts, shapes))
    return Subset(tuple(images), sizes, shapes, tuple(scales))


def keep_images(flags: List[bool], shapes: Shapes, scales: Sequence[float]) -> Kept:
    """Return the path that computes a branch for the images whose flag is set, over all resolutions in their order."""
    images, sizes, pieces, first = [], [], [], 0
    for (batch, length), scale in zip(shapes, scales):
        own = flags[first : first + batch]
        first += batch
        images.append(None if all(own) else torch.tensor([i for i, flag in enumerate(own) if flag], dtype=torch.int64))
        sizes.append((sum(own), length))
        for flag in own:
            factor = scale if flag else 0.0
            if pieces and pieces[-1][1] == factor:
                pieces[-1] = (pieces[-1][0] + length, factor)
            else:
                pieces.append((length, factor))
    return Kept(tuple(images), tuple(sizes), tuple(pieces))


def take(x: Tensor, path: Path) -> Tensor:
    """Return the rows of x [R, D] of the kept images."""
    if isinstance(path, Subset):
        parts = [
            part.unflatten(0, shape).index_select(0, images).flatten(0, 1)
            for part, shape, images in zip(_resolutions(x, path.whole), path.whole, path.images)
        ]
        return torch.cat(parts) if len(parts) > 1 else parts[0]
    if not isinstance(path, Kept) or all(factor for _, factor in path.pieces):
        return x
    return _Take.apply(x, path.pieces)


def add(x: Tensor, branch: Tensor, path: Path) -> Tensor:
    """Return x [R, D] + scale * branch; of a :class:`Kept` path or a :class:`Subset` the branch has the kept rows
    only."""
    if path is None:
        return x + branch
    if isinstance(path, Kept):
        return _Add.apply(x, branch, path.pieces)
    if isinstance(path, Subset):
        parts = [
            whole.unflatten(0, shape).index_add(0, images, part.unflatten(0, kept).to(x.dtype), alpha=scale)
            for whole, part, shape, kept, images, scale in zip(
                _resolutions(x, path.whole),
                _resolutions(branch, path.shapes),
                path.whole,
                path.shapes,
                path.images,
                path.scales,
            )
        ]
        parts = [part.flatten(0, 1) for part in parts]
        return torch.cat(parts) if len(parts) > 1 else parts[0]
    return torch.addcmul(x, branch, path)


def _resolutions(x: Tensor, shapes: Shapes) -> Sequence[Tensor]:
    return x.split([batch * length for batch, length in shapes]) if len(shapes) > 1 else (x,)


def select(masks: Sequence[Optional[Tensor]], path: Path) -> Tuple[Optional[Tensor], ...]:
    """Return of each resolution's mask [B, ...] the kept images'."""
    if not isinstance(path, PARTIAL):
        return tuple(masks)
    return tuple(
        mask if mask is None or images is None else mask.index_select(0, images)
        for mask, images in zip(masks, path.images)
    )


def _pairs(
    whole: Tensor, part: Tensor, pieces: Sequence[Tuple[int, float]]
) -> Iterator[Tuple[Tensor, Optional[Tensor], float]]:
    """Pieces of the whole, each beside its piece of the kept part, or None, and its factor."""
    kept = iter(part.split([rows for rows, factor in pieces if factor]))
    for piece, (_, factor) in zip(whole.split([rows for rows, _ in pieces]), pieces):
        yield piece, next(kept) if factor else None, factor


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, pieces):
        ctx.pieces, ctx.rows = pieces, len(x)
        return torch.cat([piece for piece, (_, factor) in zip(x.split([n for n, _ in pieces]), pieces) if factor])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        out = grad.new_empty((ctx.rows, grad.shape[1]))
        for whole, part, _ in _pairs(out, grad, ctx.pieces):
            whole.zero_() if part is None else whole.copy_(part)
        return out, None


class _Add(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, branch, pieces):
        ctx.pieces, ctx.rows, ctx.dtypes = pieces, len(branch), (x.dtype, branch.dtype)
        out = x.new_empty(x.shape, dtype=torch.promote_types(x.dtype, branch.dtype))
        written = iter(out.split([rows for rows, _ in pieces]))
        for whole, part, factor in _pairs(x, branch, pieces):
            target = next(written)
            target.copy_(whole) if part is None else torch.add(whole, part, alpha=factor, out=target)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        of_x, of_branch = ctx.dtypes
        out = grad.new_empty((ctx.rows, grad.shape[1]), dtype=of_branch)
        for whole, part, factor in _pairs(grad, out, ctx.pieces):
            if part is not None:
                torch.mul(whole, factor, out=part)
        return grad.to(of_x), out, None
