"""Position embeddings of a ViT on another patch grid."""

import math
from typing import Mapping, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

Grid = Tuple[int, int]


def square_grid(patches: int) -> Optional[Grid]:
    """Return (rows, columns) of so many patches in a square, or None if they are none."""
    side = math.isqrt(max(patches, 0))
    return (side, side) if side and side * side == patches else None


def told_grid(meta: Mapping) -> Optional[Grid]:
    """Return (rows, columns) of a file's positions as its meta tells them; None if it does not."""
    told = meta.get('patch_grid')
    return (told[0], told[1]) if told else None


def are_sines(pos_embed: Tensor, extra: int) -> bool:
    """Return whether a position embedding [1, L, D] is the fixed one of MoCo v3 and MAE, by its first patch: sine and
    cosine of 0 for either direction."""
    quarter = pos_embed.shape[-1] // 4
    return torch.equal(pos_embed[0, extra].float().cpu(), torch.tensor([0.0, 1.0] * 2).repeat_interleave(quarter))


def split_tokens(length: int, expected_extra: int) -> Optional[Tuple[int, int]]:
    """Return how many of ``length`` slots belong to leading tokens if the rest is a square grid.

    The count that the module expects is preferred, then the smallest that works (up to 8).

    Returns:
        (leading slots, side of the grid), or None if no such split exists.
    """
    for extra in (expected_extra, *range(9)):
        grid = square_grid(length - extra)
        if grid is not None:
            return extra, grid[0]
    return None


def resize_positions(
    pos_embed: Tensor,
    grid: Grid,
    extra: int,
    mode: str = 'bicubic',
    source_grid: Optional[Grid] = None,
    antialias: bool = False,
) -> Tensor:
    """Bring a position embedding to ``grid`` rows and columns, leading-token slots handled apart.

    Resampling is given the target *size*, never a scale factor: a rounded factor shifts positions or misses the grid
    by one. Mode and alignment are those of mmpretrain's forward pass at another image size, so resizing here or there
    is the same.

    Args:
        pos_embed: [1, L, D], L = leading slots + patches.
        grid: Target (rows, columns).
        extra: Leading slots of the target. A slot that the file lacks becomes zero: nothing is added to that token.
            Slots that the target lacks are dropped only when it has none at all: which of several to keep cannot be
                known.
        source_grid: (rows, columns) of ``pos_embed``; None: a square is deduced.
        antialias: As timm and DINOv2 with registers do it; another cubic than without, of a larger grid, too.

    Returns:
        [1, extra + rows * columns, D], in the dtype of the input.

    Raises:
        ValueError: the source is not a square grid, or its leading slots do not fit.
    """
    length = pos_embed.shape[1]
    if source_grid is None:
        split = split_tokens(length, extra)
        if split is None:
            raise ValueError(f'its {length} position slots are not a square patch grid plus a few tokens')
        source_extra, source_grid = split[0], (split[1], split[1])
    else:
        source_extra = length - source_grid[0] * source_grid[1]
        if source_extra < 0:
            raise ValueError(f'its {length} position slots are fewer than {source_grid[0]} x {source_grid[1]} patches')
    if source_extra > extra > 0:
        raise ValueError(f'its position embedding has {source_extra} leading token slots and the module {extra}')
    tokens, patches = pos_embed[:, :source_extra], pos_embed[:, source_extra:]
    tokens = tokens[:, :extra]
    if extra > source_extra:
        tokens = torch.cat((tokens, tokens.new_zeros(1, extra - source_extra, tokens.shape[2])), dim=1)
    if tuple(grid) != tuple(source_grid):
        plane = patches.reshape(1, *source_grid, -1).permute(0, 3, 1, 2)
        plane = plane if plane.dtype == torch.float64 else plane.float()
        plane = F.interpolate(plane, size=tuple(grid), mode=mode, align_corners=False, antialias=antialias)
        patches = plane.flatten(2).transpose(1, 2).to(pos_embed.dtype)
    return torch.cat((tokens, patches), dim=1)


def rope_periods(head_dims: int, base: float = 100.0) -> Tensor:
    """Return the periods [head_dims / 4] of rotary positions, in units of half the image's side: base^0 to just below
    base^1."""
    return base ** (torch.arange(head_dims // 4, dtype=torch.float32) / (head_dims // 4))
