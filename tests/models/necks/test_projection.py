"""The projection neck: cosines with the prototypes, batch norm of each population."""

import torch
import torch.nn.functional as F
from mmpretrain.registry import MODELS

import odis_mm  # noqa: F401
from helpers import K


def test_prototype_logits_are_scaled_cosines():
    neck = MODELS.build(
        dict(
            type='ProjectionNeck',
            in_channels=8,
            hidden_channels=12,
            bottleneck_channels=6,
            num_prototypes=5,
            norm_trainable=False,
        )
    )
    neck.init_weights()
    x = torch.randn(7, 8)
    expected = F.cosine_similarity(neck.mlp(x)[:, None], neck.prototypes.weight_v[None], dim=-1)
    torch.testing.assert_close(neck(x), expected)
    assert neck.prototype_parameters() == [neck.prototypes.weight_v]


def test_batch_norm_in_the_neck_standardises_and_keeps_populations_apart():
    neck = MODELS.build(
        dict(
            type='ProjectionNeck',
            in_channels=32,
            hidden_channels=40,
            bottleneck_channels=16,
            num_prototypes=K,
            norm_cfg=dict(type='BN1d'),
        )
    )
    neck.init_weights()
    tokens = 1 + 1e-2 * torch.randn(64, 32)  # all but equal, as a fresh backbone's are
    z = neck.mlp(tokens)
    torch.testing.assert_close(z.mean(0), torch.zeros(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.std(0, correction=0), torch.ones(16), atol=0.3, rtol=0)
    assert neck(tokens.view(8, 8, 32)).shape == (8, 8, K)
    a, b = torch.randn(9, 32), 5 + torch.randn(30, 32)
    leading, patches = MODELS.get('ODIS').project(neck, a[:, None], b)
    torch.testing.assert_close(leading, neck(a)[:, None])
    torch.testing.assert_close(patches, neck(b))
