"""RoIAlign of boxes within maps as products: interpolating and averaging are linear, with the same weights for all
channels."""

from typing import Optional, Tuple

import torch
from torch import Tensor

from ..linear import product


def sampling_weights(boxes: Tensor, size: int, grid: Tuple[int, int], patch: float) -> Tensor:
    """Return what the cells of boxes take from each cell of a map, by RoIAlign's rule (He et al., arXiv 1703.06870):
    ``aligned=True``, as many samples as a cell needs.

    Args:
        boxes: [K, 4] in pixels, within the view.
        size: S, cells per side of the result.
        grid: (h, w) of the map.
        patch: Pixels per cell of the map.

    Returns:
        float32 [K, h * w, S, S]: zeros for boxes without an area, else the sum over h * w is 1.
    """
    corners = boxes.float() * (1 / patch) - 0.5  # of cells, whose centers are the whole numbers
    x1, y1, x2, y2 = corners.unbind(1)
    down, across = _weights_along(y1, y2, size, grid[0]), _weights_along(x1, x2, size, grid[1])
    return (down.mT[:, :, None, :, None] * across.mT[:, None, :, None, :]).flatten(1, 2)


def _weights_along(first: Tensor, last: Tensor, size: int, length: int) -> Tensor:
    """Of one side, [K] to [K], the weights [K, S, length]."""
    most = length // size + 1  # samples that a cell of a box within the map can need
    count = ((last - first) / size).ceil().clamp(max=most)[:, None, None]
    number = torch.arange(most, device=first.device)
    cell = torch.arange(size, device=first.device)[:, None]
    at = first[:, None, None] + ((last - first) / size)[:, None, None] * (cell + (number + 0.5) / count.clamp(min=1))
    counts = (number < count) & (at >= -1) & (at <= length)  # [K, S, samples]
    near = at.clamp(0, length - 1)[..., None] - torch.arange(length, device=first.device)
    return ((1 - near.abs()).clamp(min=0) * counts[..., None]).sum(2) / count.clamp(min=1)


def align_boxes(maps: Tensor, weights: Tensor, index: Optional[Tensor] = None) -> Tensor:
    """Cut boxes out of maps, all that lie on a map in one product; its gradient is one product, too, not a sum in the
    order in which threads arrive.

    Args:
        maps: [M, C, h, w]; channels last in memory saves a copy.
        weights: [K, h * w, S, S] of :func:`sampling_weights`, flipped or turned as the cells are to be.
        index: int64 [K], which of the maps each box lies on, all equally often; None: box k lies on map k.

    Returns:
        float32 [K, S * S, C].
    """
    rows, cells = weights.flatten(2).mT, maps.flatten(2).mT.float()  # [K, S*S, h*w], [M, h*w, C]
    shape = *rows.shape[:2], maps.shape[1]
    order = None
    if index is not None:
        order = index.argsort(stable=True)
        rows = rows.index_select(0, order).unflatten(0, (len(maps), len(rows) // len(maps))).flatten(1, 2)
    with torch.autocast(maps.device.type, enabled=False):
        out = product(rows, cells).view(shape)
    return out if order is None else out.index_select(0, order.argsort())
