"""Rotary positions of patches on two axes, as in DINOv3 (Simeoni et al., arXiv 2508.10104)."""

import math
from typing import Optional, Tuple

import torch
from torch import Tensor, nn

from ...transfer.positions import rope_periods
from ...utils.errors import ConfigError

Rope = Tuple[Tensor, Tensor]  # cosines and sines, [T, head width] each


class AxialRope(nn.Module):
    """Angles by which queries and keys are rotated, from the place of their patch.

    A patch's center has coordinates in [-1, 1] on each axis, whatever the number of patches, so that one set of periods
    serves all image sizes and aspect ratios. A head's width is cut into four: half the angles follow the row, half the
    column, and the second half of the width repeats them (rotation of halves). Leading tokens are not rotated.

    Args:
        head_dims: Width of an attention head; a multiple of 4.
        base: Of the geometric series of periods (DINOv3: 100).
        shift: While training, move all coordinates of a batch by up to this much along each axis.
        jitter: While training, stretch each axis of a batch by a log-uniform factor in [1 / jitter, jitter].
        rescale: While training, stretch both axes of a batch alike by a log-uniform factor in [1 / rescale, rescale]
            (DINOv3: 2).

    Raises:
        ConfigError: a width that is no multiple of 4, or a factor below 1.
    """

    def __init__(
        self,
        head_dims: int,
        base: float = 100.0,
        shift: Optional[float] = None,
        jitter: Optional[float] = None,
        rescale: Optional[float] = None,
    ):
        super().__init__()
        if head_dims % 4:
            raise ConfigError(f'rotary positions need heads whose width is a multiple of 4, got {head_dims}.')
        if any(factor is not None and factor < 1 for factor in (jitter, rescale)):
            raise ConfigError(f'rope.jitter and rope.rescale are factors of at least 1, got {jitter} and {rescale}.')
        self.shift, self.jitter, self.rescale = shift, jitter, rescale
        self.register_buffer('periods', rope_periods(head_dims, base))  # in the file, as in DINOv3's own

    def forward(self, grid: Tuple[int, int], leading: int) -> Rope:
        """Return cosines and sines [leading + rows * columns, head_dims], in float32."""
        periods = self.periods.float()
        axes = [(2 * torch.arange(n, device=periods.device) + 1) / n - 1 for n in grid]
        coordinates = torch.stack(torch.meshgrid(*axes, indexing='ij'), dim=-1).flatten(0, 1)  # [N, 2]
        if self.training:
            coordinates = self._augment(coordinates)
        angles = (2 * math.pi * coordinates[:, :, None] / periods).flatten(1).tile(2)  # [N, head_dims]
        front = angles.new_zeros(leading, angles.shape[1])
        angles = torch.cat((front, angles))
        return angles.cos(), angles.sin()

    def _augment(self, coordinates: Tensor) -> Tensor:
        if self.shift is not None:
            coordinates = coordinates + coordinates.new_empty(2).uniform_(-self.shift, self.shift)
        for factor, axes in ((self.jitter, 2), (self.rescale, 1)):
            if factor is not None:
                spread = math.log(factor)
                coordinates = coordinates * coordinates.new_empty(axes).uniform_(-spread, spread).exp()
        return coordinates


def rotate(x: Tensor, rope: Optional[Rope]) -> Tensor:
    """Return x [B, heads, T, d] with its pairs (i, i + d/2) turned by their angles; unchanged without."""
    if rope is None:
        return x
    cos, sin = rope
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)
