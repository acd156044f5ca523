"""Optimizer groups: what decays, and what does not."""

import pytest

import odis_mm  # noqa: F401
from helpers import make_odis
from odis_mm.engine.optim import SelfSupOptimWrapperConstructor


def test_optimizer_groups():
    model = make_odis()
    wrapper = SelfSupOptimWrapperConstructor(dict(optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.1)))(model)
    decayed = {id(p) for p in wrapper.optimizer.param_groups[0]['params']}
    names = {name for name, p in model.named_parameters() if id(p) in decayed}
    assert 'backbone.layers.0.attn.qkv.weight' in names and 'neck.prototypes.weight_v' in names
    assert not names & {
        'backbone.cls_token',
        'backbone.pos_embed',
        'mask_token',
        'neck.prototypes.weight_g',
        'backbone.layers.0.ln1.weight',
    }
    total = sum(len(g['params']) for g in wrapper.optimizer.param_groups)
    assert total == sum(p.requires_grad for p in model.parameters())
    with pytest.raises(ValueError, match='paramwise_cfg'):
        SelfSupOptimWrapperConstructor(dict(optimizer={}), paramwise_cfg=dict(norm_decay_mult=0.0))
