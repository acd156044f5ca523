"""Initial weights: those of the releases, in every linear layer and convolution of student and teacher."""

import pytest
import torch
from mmpretrain.registry import MODELS
from torch import nn

import odis_mm  # noqa: F401
from odis_mm.config import load_config
from odis_mm.models.weight_init import trunc_normal

TORCH_DEFAULT = ('patch_embed', 'head.rotation')  # the releases leave these to torch


def model_of(recipe):
    torch.manual_seed(0)
    model = MODELS.build(load_config(recipe).model)
    model.init_weights()
    return model


@pytest.mark.parametrize('recipe', ['odis_vits_coco', 'gtsa_vits_coco', 'alfm_vits_coco'])
def test_every_linear_and_convolution_starts_as_in_the_releases(recipe):
    model = model_of(recipe)
    seen = dict(Linear=0, Conv2d=0)
    for name, module in model.named_modules():
        if not isinstance(module, (nn.Linear, nn.Conv2d)) or any(part in name for part in TORCH_DEFAULT):
            continue
        seen[type(module).__name__] += 1
        assert module.weight.std().item() == pytest.approx(0.02, rel=0.02), name
        assert abs(module.weight.mean().item()) < 5e-4, name
        assert not module.bias.any(), name
    assert seen['Linear'] >= 2 * 48 and (seen['Conv2d'] >= 6 or recipe != 'gtsa_vits_coco')
    for backbone in (model.backbone, model.teacher['backbone']):
        for tensor in (backbone.pos_embed, backbone.cls_token):
            assert tensor.std().item() == pytest.approx(0.02, rel=0.15)
    for key, value in model.backbone.state_dict().items():
        assert torch.equal(value, model.teacher['backbone'].state_dict()[key]), key


def test_a_narrow_model_may_start_by_its_width():
    model = model_of('odis_demo')
    for layer in model.backbone.layers:
        for part in (layer.attn.qkv, layer.attn.proj, layer.ffn.layers[0][0], layer.ffn.layers[1]):
            fan_out, fan_in = part.weight.shape
            xavier, torchs = (2 / (fan_in + fan_out)) ** 0.5, (3 * fan_in) ** -0.5
            std = torchs if part in (layer.attn.qkv, layer.attn.proj) else xavier
            assert part.weight.std().item() == pytest.approx(std, rel=0.03)
    assert model.backbone.pos_embed.std().item() == pytest.approx(0.02, rel=0.15)
    assert model.neck.mlp[0].weight.std().item() == pytest.approx(0.02, rel=0.03)


def test_a_draw_on_the_bound_is_no_outlier(monkeypatch):
    """torch maps a uniform draw to a normal value; one that falls on the end of its range becomes infinite and is
    clamped."""
    weight = torch.empty(64, 64)
    uniform = torch.Tensor.uniform_

    def on_the_bound(self, low=0.0, high=1.0, **kwargs):
        uniform(self, low, high, **kwargs)
        self.view(-1)[0], self.view(-1)[-1] = low, high
        return self

    monkeypatch.setattr(torch.Tensor, 'uniform_', on_the_bound)
    trunc_normal(weight)
    assert 0.09 < weight.abs().max() < 0.1001
    nn.init.trunc_normal_(weight, std=0.02)
    assert weight.abs().max() == 2, 'torch no longer does this: trunc_normal may go'


def test_no_weight_of_a_recipe_is_an_outlier(monkeypatch):
    monkeypatch.setattr(torch.Tensor, 'uniform_', lambda self, low=0.0, high=1.0, **kwargs: self.fill_(high))
    model = MODELS.build(load_config('odis_demo').model)
    model.init_weights()
    for name, parameter in model.named_parameters():
        assert parameter.abs().max() <= 1, name
        if 'patch_embed' not in name and parameter.ndim > 1 and not name.endswith('weight_g'):
            std = model.backbone.init_std if 'backbone.layers' in name else 0.02
            assert std is None or parameter.abs().max() <= 5.005 * std, name
