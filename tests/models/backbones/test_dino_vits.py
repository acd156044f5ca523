"""The ViTs of DINOv2 and DINOv3 as ObjectViT: registers, rotary positions, gated MLPs, maps for detectors, windows,
frozen blocks."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from helpers import ARCH, losses_and_gradients_of, make_odis, random_images, random_masks
from odis_mm.analysis.cost import forms_of_gpus
from odis_mm.engine.optim import decays
from odis_mm.models import ObjectViT
from odis_mm.models.backbones.rope import AxialRope
from odis_mm.utils.errors import ConfigError

WIDE = {**ARCH, 'embed_dims': 64}  # heads of 16
V2 = dict(layer_scale_init_value=0.5, num_registers=2)
V3 = dict(**V2, rope=dict(base=100), key_bias=False)
MODELS = {
    'registers': V2,
    'dinov3': V3,
    'dinov3 swiglu': dict(**V3, swiglu=True),
    'dinov3 without bias': {**V3, 'qkv_bias': False},
    'several tokens': dict(**V3, cls_beside_object=True, num_object_tokens=2),
    'swiglu': dict(swiglu=True, layer_scale_init_value=0.5),
}


def build(**options):
    torch.manual_seed(0)
    model = ObjectViT(WIDE, img_size=32, patch_size=8, **options)
    model.init_weights()
    for parameter in model.parameters():  # no zero may hide what is left out
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.eval()
    return model


def turned(x, leading, rows, columns, base=100.0):
    """DINOv3's rotary positions, patch by patch and pair by pair."""
    x = x.clone()
    width = x.shape[-1]
    quarter = width // 4
    for n in range(rows * columns):
        place = (2 * (n // columns + 0.5) / rows - 1, 2 * (n % columns + 0.5) / columns - 1)
        for axis in range(2):
            for i in range(quarter):
                angle = 2 * math.pi * place[axis] / base ** (2 * i / (width / 2))
                first = axis * quarter + i
                a, b = x[:, :, leading + n, first].clone(), x[:, :, leading + n, first + width // 2].clone()
                x[:, :, leading + n, first] = a * math.cos(angle) - b * math.sin(angle)
                x[:, :, leading + n, first + width // 2] = b * math.cos(angle) + a * math.sin(angle)
    return x


def brute_force(vit, images, object_mask=None, grid=(4, 4)):
    """The forward pass with explicit products and masks; [OBJ] sees itself, the registers and its patches."""
    x, _ = vit.embed(images)
    lead, objects = vit.num_leading_tokens, range(vit.object_slice.start, vit.object_slice.stop)
    for layer in vit.layers:
        attn, y = layer.attn, layer.ln1(x)
        bias = attn.qkv.bias
        if bias is not None and vit.rope is not None:
            bias = bias * torch.tensor([1.0, 0.0, 1.0]).to(bias).repeat_interleave(len(bias) // 3)
        qkv = F.linear(y, attn.qkv.weight, bias).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv
        if vit.rope is not None:
            q, k = (turned(part, lead, *grid) for part in (q, k))
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        if object_mask is not None:
            for row in objects:
                sees = torch.cat((torch.zeros(len(x), lead, dtype=torch.bool), object_mask), 1)
                sees[:, row] = sees[:, objects.stop : lead] = True
                scores[:, :, row].masked_fill_(~sees[:, None], -torch.inf)
        out = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = x + attn.gamma1(attn.proj(out))
        x = layer.ffn(layer.ln2(x), identity=x)
    return vit.ln1(x)


@pytest.mark.parametrize('form', ['cpu', 'gpu'])
@pytest.mark.parametrize('name', list(MODELS))
def test_masked_rows_equal_brute_force(name, form):
    vit = build(**MODELS[name]).double()
    images, mask = random_images().double(), random_masks()
    mask[1] = False
    with forms_of_gpus(vit) if form == 'gpu' else torch.no_grad():
        masked, plain = vit(images, mask)[-1], vit(images)[-1]
    torch.testing.assert_close(masked, brute_force(vit, images, mask), atol=1e-6, rtol=0)
    torch.testing.assert_close(plain, brute_force(vit, images), atol=1e-6, rtol=0)
    assert (masked - plain)[:, vit.object_slice].abs().max() > 1e-3


@pytest.mark.parametrize('name', ['registers', 'dinov3', 'dinov3 swiglu'])
@pytest.mark.parametrize('size', [(32, 32), (24, 48)])
def test_a_mask_of_all_ones_equals_none(name, size):
    vit = build(**MODELS[name]).double()
    images = torch.randn(2, 3, *size).double()
    ones = torch.ones(2, size[0] * size[1] // 64, dtype=torch.bool)
    torch.testing.assert_close(vit(images, ones)[-1], vit(images)[-1], atol=1e-6, rtol=0)


@pytest.mark.parametrize('name', ['dinov3 swiglu', 'several tokens'])
@pytest.mark.parametrize('options', [dict(packed=True), dict(with_cp=True), dict(patches=True)])
def test_speed_options_leave_losses_and_gradients(name, options):
    """Packed resolutions, checkpointing and the rows that are read, beside the plain path, in a training step of
    ODIS."""
    model = make_odis(backbone=dict(arch=WIDE), neck=dict(in_channels=64))
    model.backbone = build(**MODELS[name])
    model.teacher['backbone'] = copy.deepcopy(model.backbone).requires_grad_(False)
    model.train()
    model.set_progress(0, 100, 10)
    other = copy.deepcopy(model)
    if 'packed' in options:
        other.packed = True
    elif 'with_cp' in options:
        other.backbone.with_cp = True
    else:  # the teacher reads all patches and takes those that it needs
        model.head.patch_center_of_all = True
        other.head.patch_center_of_all = False
    a, b = losses_and_gradients_of(model), losses_and_gradients_of(other)
    torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)
    assert 'backbone.register_tokens' in a[1]


def test_the_key_bias_is_zero_and_stays_so():
    vit = build(**V3)
    for layer in vit.layers:
        layer.attn.qkv.clear()
    optimizer = torch.optim.AdamW(vit.parameters(), lr=0.1)
    vit(random_images())[-1].square().mean().backward()
    optimizer.step()
    query, key, value = vit.layers[0].attn.qkv.bias.chunk(3)
    assert not key.any() and query.any() and value.any()


def test_rope_is_the_same_at_all_sizes_and_augmented_in_training_only():
    rope = AxialRope(16, shift=0.3, jitter=1.5, rescale=2.0)
    plain = AxialRope(16)
    for grid in ((4, 4), (3, 7)):
        torch.testing.assert_close(rope.eval()(grid, 5), plain(grid, 5))
        cos, sin = plain(grid, 5)
        assert cos.shape == sin.shape == (5 + grid[0] * grid[1], 16)
        assert (cos[:5] == 1).all() and (sin[:5] == 0).all()
    torch.testing.assert_close(plain((2, 2), 0)[1], torch.tensor(_corner()))
    torch.manual_seed(0)
    drawn = [rope.train()((4, 4), 0)[0] for _ in range(2)]
    assert (drawn[0] - drawn[1]).abs().max() > 0.1
    with pytest.raises(ConfigError, match='at least 1'):
        AxialRope(16, rescale=0.5)


def _corner():
    """Sines of a grid of 2 x 2: centers at -1/2 and 1/2 of either axis."""
    periods = [100 ** (i / 4) for i in range(4)]
    row = {side: [math.sin(2 * math.pi * side / p) for p in periods] for side in (-0.5, 0.5)}
    return [(row[y] + row[x]) * 2 for y in (-0.5, 0.5) for x in (-0.5, 0.5)]


def test_maps_for_detectors_are_the_patches_contiguous():
    vit = build(**V3, out_indices=[0, 2])
    images = torch.randn(2, 3, 24, 40)
    tokens = vit(images)
    vit.out_type = 'featmap'
    maps = vit(images)
    assert [m.shape for m in maps] == [(2, 64, 3, 5)] * 2 and all(m.is_contiguous() for m in maps)
    for m, t in zip(maps, tokens):
        assert torch.equal(m, vit.to_map(t, (24, 40)))
        assert torch.equal(m[0, :, 1, 2], t[0, vit.num_leading_tokens + 7])


def test_frozen_blocks_are_not_trained_and_drop_nothing():
    vit = build(**V3, frozen=2, drop_path_rate=0.5)
    vit.train()
    vit(random_images(), random_masks())[-1].square().mean().backward()
    trained = {
        name.split('.')[1] if name.startswith('layers') else name
        for name, p in vit.named_parameters()
        if p.grad is not None
    }
    assert trained == {'2', 'ln1.weight', 'ln1.bias'}
    assert not vit.layers[1].training and vit.layers[2].training
    everything = build(**V3, frozen=True)
    everything.train()
    assert not any(p.requires_grad for p in everything.parameters()) and not everything.layers[-1].training
    with pytest.raises(ConfigError, match='within 0 and 3'):
        build(frozen=4)


@pytest.mark.parametrize('size', [2, 3])
@pytest.mark.parametrize('form', ['cpu', 'gpu'])
def test_windows_equal_a_masked_attention(size, form):
    """All blocks windowed, of a grid that windows of 3 do not divide: patches see leading tokens and their own
    window."""
    vit = build(**V3, window_size=size, global_every=9).double()
    images, mask = torch.randn(2, 3, 32, 40).double(), random_masks(2, 20)
    rows, columns, lead = 4, 5, vit.num_leading_tokens
    where = [(n // columns // size, n % columns // size) for n in range(rows * columns)]
    same = torch.tensor([[a == b for b in where] for a in where])
    sees = F.pad(same, (lead, 0, lead, 0), value=True).repeat(2, 1, 1)
    sees[:, 0] = F.pad(mask, (lead, 0), value=True)
    x, grid = vit.embed(images)
    rope = vit.rope(grid, lead)
    for layer in vit.layers:
        attn = layer.attn
        q, k, v = attn.qkv(layer.ln1(x)).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = (turned(part, lead, rows, columns) for part in (q, k))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=sees[:, None])
        x = x + attn.gamma1(attn.proj(out.transpose(1, 2).flatten(2)))
        x = layer.ffn(layer.ln2(x), identity=x)
    with forms_of_gpus(vit) if form == 'gpu' else torch.no_grad():
        torch.testing.assert_close(vit(images, mask)[-1], vit.ln1(x), atol=1e-6, rtol=0)
    assert rope[0].shape == (lead + 20, 16)


def test_every_nth_block_is_global():
    vit = build(window_size=2, global_every=3)
    assert [vit.window_of(i) is None for i in range(6)] == [False, False, True, False, False, True]
    wide = build(window_size=4, global_every=9)  # one window: all of the image
    torch.testing.assert_close(wide(random_images())[-1], build()(random_images())[-1], atol=1e-5, rtol=1e-5)


def test_tokens_bear_no_decay_and_stand_at_the_bottom_of_the_ladder():
    vit = build(**V3, cls_beside_object=True)
    parameters = dict(vit.named_parameters())
    for name in ('register_tokens', 'object_tokens', 'cls_token'):
        assert not decays(f'backbone.{name}', parameters[name])
        assert vit.get_layer_depth(f'backbone.{name}', 'backbone.') == (0, 5)
    assert vit.get_layer_depth('backbone.layers.1.ln1.weight', 'backbone.') == (2, 5)


@pytest.mark.parametrize(
    'options',
    [
        dict(out_type='cls_token'),
        dict(with_cls_token=False),
        dict(num_registers=-1),
        dict(window_size=-1),
        dict(window_size=2, global_every=0),
    ],
)
def test_options_that_do_not_go_together_are_named(options):
    with pytest.raises(ConfigError):
        build(**options)


@pytest.mark.parametrize(
    'arch, told',
    [
        ('tiny', "arch='tiny' is none of .*deit-small"),
        (dict(embed_dims=32, num_layers=2, num_heads=5, feedforward_channels=64), '5 heads do not divide the width'),
    ],
)
def test_a_shape_that_is_none_is_told(arch, told):
    with pytest.raises(ConfigError, match=told):
        ObjectViT(arch=arch, img_size=32, patch_size=8)
