"""The anchor to the starting weights: zero at the start, held against a textbook form, gone from nothing but the
loss."""

import pytest
import torch
import torch.nn.functional as F

from helpers import losses_of, make_batch, make_odis
from odis_mm.models.selfsup.base import anchor_loss
from odis_mm.utils.errors import ConfigError


@pytest.mark.parametrize('kind', ['feature', 'gram'])
def test_an_anchored_student_starts_at_no_distance_and_is_drawn_back(kind):
    model = make_odis(anchor=dict(kind=kind, weight=100.0), backbone=dict(num_registers=2))
    model.train()
    data = make_batch()
    losses = losses_of(model, data)
    assert abs(float(losses['loss_anchor'])) < 1e-3
    with torch.no_grad():
        for parameter in model.backbone.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    losses = losses_of(model, data)
    losses['loss_anchor'].backward()
    assert float(losses['loss_anchor']) > 1e-2
    assert model.backbone.layers[0].attn.qkv.weight.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in model.start.parameters()) and not model.start.training
    assert any(key.startswith('start.') for key in model.state_dict())  # a resumed run keeps its anchor
    assert not any(key.startswith('start.') for key in model.teacher_backbone_state())


def test_anchor_losses_are_those_of_the_formula():
    x, y = torch.randn(2, 3, 5, 8)
    total = 0.0
    for image in range(3):
        for i in range(5):
            for j in range(5):
                a = F.cosine_similarity(x[image, i], x[image, j], dim=0)
                b = F.cosine_similarity(y[image, i], y[image, j], dim=0)
                total += float((a - b) ** 2) / 75
    assert float(anchor_loss(x, y, 'gram')) == pytest.approx(total, rel=1e-4)
    assert float(anchor_loss(x, y, 'feature')) == pytest.approx(1 - float(F.cosine_similarity(x, y, dim=-1).mean()))
    turn = torch.linalg.qr(torch.randn(8, 8))[0]
    assert float(anchor_loss(x @ turn, x, 'gram')) < 1e-10 < float(anchor_loss(x @ turn, x, 'feature'))


@pytest.mark.parametrize('kind', ['feature', 'gram'])
def test_anchor_losses_are_of_float32_under_autocast(kind):
    x, y = torch.randn(2, 3, 5, 64)
    expected = anchor_loss(x, y, kind)
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(anchor_loss(x, y, kind), expected)


def test_an_unknown_anchor_is_named():
    with pytest.raises(ConfigError, match="'feature' or 'gram'"):
        make_odis(anchor=dict(kind='weights'))
    with pytest.raises(ConfigError, match="'feature' or 'gram'.*, got 1"):
        make_odis(anchor=1)
