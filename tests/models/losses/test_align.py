"""RoIAlign as products, beside torchvision's."""

import pytest
import torch
from torchvision.ops import roi_align

from odis_mm.models.losses.align import align_boxes, sampling_weights

PATCH = 16


def boxes_within(grid, count):
    """Boxes [count, 4] of any size; among them the whole view, none at all and one whose cells are as large as the
    map's."""
    corners = torch.rand(count, 2, 2) * torch.tensor([grid[1], grid[0]]) * PATCH
    boxes = torch.cat((corners.amin(1), corners.amax(1)), 1)
    boxes[0] = torch.tensor([0, 0, grid[1] * PATCH, grid[0] * PATCH])
    boxes[1] = 0
    boxes[2] = torch.tensor([0, 0, min(grid) * PATCH, min(grid) * PATCH])
    return boxes


@pytest.mark.parametrize(
    'grid, size', [((14, 14), 10), ((14, 14), 4), ((6, 6), 4), ((7, 9), 7), ((8, 8), 1), ((3, 3), 7)]
)
def test_equals_torchvisions(grid, size):
    torch.manual_seed(0)
    maps = torch.randn(5, 3, *grid, dtype=torch.float64, requires_grad=True)
    index = torch.arange(5).repeat(4)[torch.randperm(20)]
    boxes = boxes_within(grid, 20)
    weights = sampling_weights(boxes, size, grid, PATCH)
    cells = align_boxes(maps, weights, index)
    wanted = roi_align(
        maps.float(), torch.cat((index[:, None].float(), boxes), 1), size, spatial_scale=1 / PATCH, aligned=True
    )
    torch.testing.assert_close(cells, wanted.flatten(2).mT, atol=2e-5, rtol=1e-5)
    assert not cells[1].any() and cells[0].any()

    grad = torch.randn_like(wanted)
    (ours,) = torch.autograd.grad(cells, maps, grad.flatten(2).mT)
    (theirs,) = torch.autograd.grad(wanted, maps, grad)
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)


def test_each_box_on_a_map_of_its_own():
    torch.manual_seed(0)
    maps, weights = torch.randn(4, 3, 6, 6), sampling_weights(boxes_within((6, 6), 4), 4, (6, 6), PATCH)
    torch.testing.assert_close(
        align_boxes(maps, weights), align_boxes(maps, weights, torch.arange(4)), atol=1e-6, rtol=1e-6
    )


def test_no_box_at_all():
    weights = sampling_weights(torch.zeros(0, 4), 4, (6, 6), PATCH)
    assert align_boxes(torch.randn(2, 3, 6, 6), weights, torch.zeros(0, dtype=torch.int64)).shape == (0, 16, 3)


def test_stays_in_float32_under_autocast():
    maps, weights = torch.randn(2, 3, 6, 6), sampling_weights(boxes_within((6, 6), 4)[:2], 4, (6, 6), PATCH)
    with torch.autocast('cpu', torch.bfloat16):
        cells = align_boxes(maps, weights)
    torch.testing.assert_close(cells, align_boxes(maps, weights), atol=0, rtol=0)
