"""Cells of what two views share: the same places of the image in the same order, and their context (ALFM)."""

from typing import Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...structures import turn_squares
from ...utils.errors import ConfigError
from .align import align_boxes, sampling_weights


def aligned_cells(
    maps: Tensor, boxes: Tensor, pixels: Tuple[int, int], flip: Tensor, rot90: Tensor, num_cells: int
) -> Tensor:
    """Cut boxes out of feature maps as S x S cells, with flips and quarter turns undone: cell i shows the same place in
    every view.

    Args:
        maps: [n, C, H, W], one for each view, of any stride that divides the view.
        boxes: [n, 4] in pixels of the views.
        pixels: (h, w) of the views.
        flip: bool [n].
        rot90: int64 [n], as in ``View``.
        num_cells: S.

    Returns:
        float32 [n, S*S, C], row by row of the image.

    Raises:
        ConfigError: if the maps have different strides in height and width: the view's size is no multiple of the
            backbone's stride.
    """
    stride, other = pixels[0] / maps.shape[2], pixels[1] / maps.shape[3]
    if stride != other:
        raise ConfigError(
            f'views of {pixels[0]} x {pixels[1]} pixels become maps of {maps.shape[2]} x {maps.shape[3]} cells, which '
            'are not '
            "square: make the size in SampleViews' views a multiple of the backbone's stride."
        )
    weights = turn_squares(sampling_weights(boxes, num_cells, maps.shape[-2:], stride), -rot90)  # [n, H*W, S, S]
    return align_boxes(maps, torch.where(flip[:, None, None, None], weights.flip(-1), weights))


def with_context(cells: Tensor, temperature: float) -> Tensor:
    """Return ``u_i = sum_j softmax_j(<t_i, t_j> / tau_c) t_j`` over the cells of one view: [..., N, C] unit vectors to
    [..., N, C]."""
    with torch.autocast(cells.device.type, enabled=False):
        return F.scaled_dot_product_attention(cells, cells, cells, scale=1 / temperature)
