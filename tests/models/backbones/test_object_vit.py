"""ObjectViT: the stock ViT with all patches, brute force with an object mask."""

import math

import pytest
import torch

import odis_mm  # noqa: F401
from helpers import ARCH, make_vit


def test_same_parameters_as_the_stock_vit():
    ours, stock = make_vit().state_dict(), make_vit('VisionTransformer').state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in stock.items()}


@pytest.mark.parametrize('size', [(32, 32), (48, 24)])
def test_all_ones_mask_is_the_stock_vit(size):
    ours, stock = (
        make_vit().double(),
        make_vit('VisionTransformer').double(),
    )  # double: 1e-6 is to tell formulas apart, not rounding
    stock.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, *size).double()
    expected = stock(images)[-1]
    ones = torch.ones(2, size[0] * size[1] // 64, dtype=torch.bool)
    torch.testing.assert_close(ours(images)[-1], expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(ours(images, ones)[-1], expected, atol=1e-6, rtol=0)


def brute_force(vit, images, object_mask):
    """The masked forward pass with an N x N mask and an explicit softmax."""
    x, _ = vit.embed(images)
    lead, (first, stop) = vit.num_leading_tokens, (vit.object_slice.start, vit.object_slice.stop)
    for layer in vit.layers:
        b, n, d = x.shape
        attn, y = layer.attn, layer.ln1(x)
        q, k, v = attn.qkv(y).reshape(b, n, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) / math.sqrt(d // attn.num_heads)
        for i in range(b):
            for row in range(first, stop):
                for col in range(n):
                    sees = col == row or (col >= lead and object_mask[i, col - lead])
                    if not sees:
                        scores[i, :, row, col] = -torch.inf
        x = x + attn.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, d))
        x = layer.ffn(layer.ln2(x), identity=x)
    return vit.ln1(x)


@pytest.mark.parametrize(
    'options',
    [{}, dict(cls_beside_object=True), dict(num_object_tokens=3), dict(num_object_tokens=2, cls_beside_object=True)],
)
def test_masked_rows_equal_brute_force(options):
    vit = make_vit(**options).double()
    mask = torch.rand(3, 16) < 0.4
    mask[1] = False  # an object that no patch shows: [OBJ] sees itself alone, and nothing is NaN
    images = torch.randn(3, 3, 32, 32).double()
    torch.testing.assert_close(vit(images, mask)[-1], brute_force(vit, images, mask), atol=1e-6, rtol=0)


def test_mask_restricts_the_object_row_only():
    vit = make_vit(arch={**ARCH, 'num_layers': 1})
    images, mask = torch.randn(1, 3, 32, 32), torch.zeros(1, 16, dtype=torch.bool)
    mask[0, :5] = True
    changed = images.clone()
    changed[:, :, 24:] += 1  # the last row of patches lies outside the object
    (a,), (b,) = vit(images, mask), vit(changed, mask)
    torch.testing.assert_close(a[:, 0], b[:, 0])
    assert (vit(images)[0][:, 0] - vit(changed)[0][:, 0]).abs().max() > 1e-4
    assert (a[:, 1:6] - b[:, 1:6]).abs().max() > 1e-4, 'patch tokens need the context'


def test_attention_map_lies_on_the_object():
    vit, mask = make_vit(), torch.zeros(2, 16, dtype=torch.bool)
    mask[:, 2:7] = True
    with torch.no_grad():
        for p in vit.layers[-1].attn.qkv.parameters():
            p.zero_()  # equal scores: [OBJ] shares its attention evenly between itself and the 5 patches
    weights = vit.object_attention_map(torch.randn(2, 3, 32, 32), mask).flatten(1)
    torch.testing.assert_close(weights, mask.float() / 6)


def test_wrong_mask_shape_is_named():
    with pytest.raises(ValueError, match=r'bool \[1, 16\].*got \(1, 9\)'):
        make_vit()(torch.randn(1, 3, 32, 32), torch.ones(1, 9, dtype=torch.bool))


def test_activation_checkpointing_changes_nothing():
    plain, recomputed = make_vit(), make_vit(with_cp=True)
    images, mask = torch.randn(2, 3, 32, 32), torch.rand(2, 16) < 0.5
    for vit in (plain, recomputed):
        vit(images, mask)[-1].square().sum().backward()
    for a, b in zip(plain.parameters(), recomputed.parameters()):
        torch.testing.assert_close(a.grad, b.grad)


def test_mask_token_replaces_patches():
    vit = make_vit()
    where = torch.zeros(1, 16, dtype=torch.bool)
    where[0, 3] = True
    images = torch.randn(1, 3, 32, 32)
    changed = images.clone()
    changed[:, :, :8, 24:] = 9  # patch 3 is hidden from the student, so its pixels cannot matter
    token = torch.randn(32)
    torch.testing.assert_close(vit(images, None, (where, token))[-1], vit(changed, None, (where, token))[-1])
