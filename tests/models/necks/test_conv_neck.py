"""GTSA's neck beside the convolutions that its paper names."""

import pytest
import torch
import torch.nn.functional as F

from odis_mm.models.necks import ConvNeck


def as_written(neck, maps):
    for conv in neck.blocks:
        y = conv(maps)
        y = F.gelu((y - y.mean(1, keepdim=True)) / (y.var(1, keepdim=True, correction=0) + 1e-5).sqrt())
        maps = maps + y if neck.residual and maps.shape == y.shape else y
    return neck.project(maps)


@pytest.mark.parametrize('options', [dict(), dict(num_blocks=1, residual=False), dict(hidden_channels=8)])
@pytest.mark.parametrize('channels_last', [True, False])
def test_the_neck_is_its_convolutions(options, channels_last):
    torch.manual_seed(0)
    neck = ConvNeck(16, **{'hidden_channels': 16, 'out_channels': 12, **options})
    maps = torch.randn(2, 16, 5, 4)
    if channels_last:
        maps = maps.contiguous(memory_format=torch.channels_last)
    found = []
    for form in (neck, lambda x: as_written(neck, x)):
        leaf = maps.clone().requires_grad_()
        out = form(leaf)
        factor = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
        found.append([out, *torch.autograd.grad((out * factor).sum(), [leaf, *neck.parameters()])])
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)
