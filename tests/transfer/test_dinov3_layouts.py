"""DINOv3 and gated MLPs: timm's models, and DINOv3's own names, computed by both sides, and written back."""

import json

import pytest
import timm
import torch
from mmengine.registry import init_default_scope

from odis_mm.models import ObjectViT
from odis_mm.transfer import (
    CheckpointError,
    VitShape,
    build_backbone,
    convert,
    load_backbone,
    read_checkpoint,
    read_meta,
    read_vit,
    transfer,
)
from odis_mm.transfer.positions import rope_periods

SIZES = ((64, 64), (48, 96))
# of timm's models two narrow blocks: their own options otherwise
TIMM = {
    'vit_small_patch14_dinov2': 14,
    'vit_small_patch14_reg4_dinov2': 14,
    'vit_small_patch16_dinov3': 16,
    'vit_small_patch16_dinov3_qkvb': 16,
    'vit_base_patch16_dinov3': 16,
    'vit_small_plus_patch16_dinov3': 16,
    'vit_small_patch16_224': 16,
    'deit_small_patch16_224': 16,
    'vit_giant_patch14_dinov2': 14,
}


def filled(model, seed=0):
    """Random values everywhere, so that a swap or a lost tensor shows."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.5 if name.endswith(('gamma', 'gamma_1', 'gamma_2', 'lambda1')) else 0.1
            parameter.add_(torch.randn_like(parameter) * spread)
    return model.eval()


def timm_model(name):
    kwargs = dict(num_classes=0, depth=2, embed_dim=128, num_heads=2, dynamic_img_size=True)
    if TIMM[name] == 14:
        kwargs['img_size'] = 70
    return filled(timm.create_model(name, **kwargs))


@torch.no_grad()
@pytest.mark.parametrize('name', list(TIMM))
def test_timm_computes_the_same_and_takes_it_back(name, tmp_path):
    init_default_scope('mmpretrain')
    model, patch = timm_model(name), TIMM[name]
    torch.save(model.state_dict(), tmp_path / 'timm.pth')
    vit = build_backbone(tmp_path / 'timm.pth', heads=2)
    if vit.pos_embed is not None:
        vit.antialias = True  # timm's way where the size is another
    for rows, columns in ((5, 5), (4, 7)):
        images = torch.randn(2, 3, rows * patch, columns * patch)
        expected, found = model.forward_features(images), vit(images)[-1]
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max(), (rows, columns)
    conversion, proof = transfer(tmp_path / 'timm.pth', tmp_path / 'ours.pth', 'odis_mm', heads=2)
    assert proof.difference is not None
    transfer(tmp_path / 'ours.pth', tmp_path / 'again.pth', 'timm')
    fresh = timm_model(name)
    back = read_checkpoint(tmp_path / 'again.pth')
    fresh.load_state_dict(back, strict=True)
    images = torch.randn(1, 3, 5 * patch, 5 * patch)
    difference = (fresh.forward_features(images) - model.forward_features(images)).abs().max()
    assert difference <= 1e-5 * model.forward_features(images).abs().max()
    assert read_meta(tmp_path / 'again.pth')['num_heads'] == 2


@torch.no_grad()
def test_the_widest_rotary_vits_have_their_own_heads(tmp_path):
    """20 of DINOv3's ViT-H+, where learned positions of this width have 16."""
    init_default_scope('mmpretrain')
    model = filled(timm.create_model('vit_huge_plus_patch16_dinov3', num_classes=0, depth=1, dynamic_img_size=True))
    torch.save(model.state_dict(), tmp_path / 'timm.pth')
    images = torch.randn(1, 3, 48, 64)
    expected = model.forward_features(images)
    del model
    difference = build_backbone(tmp_path / 'timm.pth')(images)[-1] - expected
    assert difference.abs().max() <= 1e-5 * expected.abs().max()


def own_names(model):
    """A DINOv3 of timm under the names of DINOv3's own release, biases masked."""
    state = {'rope_embed.periods': rope_periods(64).bfloat16(), 'mask_token': torch.zeros(1, 128)}
    for name, tensor in model.state_dict().items():
        name = name.replace('reg_token', 'storage_tokens').replace('gamma_', 'ls').replace('fc1_g', 'w1')
        name = name.replace('fc1_x', 'w2')
        if name.endswith(('ls1', 'ls2')):
            name += '.gamma'
        if 'blocks.0.mlp.fc1_g.weight' in model.state_dict():
            name = name.replace('mlp.fc2', 'mlp.w3')
        if name.endswith('q_bias'):
            value = model.state_dict()[name.replace('q_bias', 'v_bias')]
            bias = torch.cat((tensor, torch.full_like(tensor, 7.0), value))  # what the mask hides
            state[name.replace('q_bias', 'qkv.bias')] = bias
            state[name.replace('q_bias', 'qkv.bias_mask')] = torch.ones(384).index_fill(0, torch.arange(128, 256), 0)
        elif not name.endswith('v_bias'):
            state[name] = tensor
    return state


@torch.no_grad()
@pytest.mark.parametrize('name', ['vit_small_patch16_dinov3_qkvb', 'vit_small_plus_patch16_dinov3'])
def test_dinov3_s_own_names_are_read_and_written(name, tmp_path):
    model = timm_model(name)
    state = own_names(model)
    source = read_vit(state)
    assert source.layout == 'dinov3' and source.norm_eps == 1e-5
    assert source.dropped == {'mask_token': 'used in pretraining only'}
    torch.save({'teacher': state}, tmp_path / 'dinov3.pth')
    vit = build_backbone(tmp_path / 'dinov3.pth')
    vit.rope.periods.copy_(rope_periods(64))  # timm's are exact, the release's rounded
    for size in SIZES:
        images = torch.randn(2, 3, *size)
        expected = model.forward_features(images)
        assert (vit(images)[-1] - expected).abs().max() <= 1e-5 * expected.abs().max()
    written = convert(source, 'dinov3').tensors
    assert written.keys() == state.keys()
    again = read_vit(written).state
    assert all(torch.equal(again[key], source.state[key]) for key in source.state)


def test_a_dinov3_file_tells_its_shape():
    shape = VitShape.of(read_vit(own_names(timm_model('vit_small_plus_patch16_dinov3'))).state)
    assert (shape.patches, shape.head_width, shape.registers, shape.gated) == (None, 64, 4, True)
    assert shape.heads('x') == 2 and shape.grid((3, 5)) == (3, 5)


@pytest.mark.parametrize('target', ['mmpretrain', 'mmseg', 'detectron2', 'huggingface-dinov2'])
def test_rotary_positions_have_no_place_in(target):
    with pytest.raises(CheckpointError, match=r'rotary positions, and .* has learned ones'):
        convert(read_vit(timm_model('vit_small_patch16_dinov3').state_dict()), target)


@pytest.mark.parametrize('target', ['huggingface', 'mmseg', 'detectron2'])
def test_gated_mlps_are_refused_or_go_to_dinov2(target):
    source = read_vit(timm_model('vit_giant_patch14_dinov2').state_dict())
    if target == 'huggingface':
        assert convert(source, target).target.name == 'huggingface-dinov2'
    else:
        with pytest.raises(CheckpointError, match='gated MLPs'):
            convert(source, target)


def test_the_error_names_the_options_that_a_file_needs():
    state = timm_model('vit_small_plus_patch16_dinov3').state_dict()
    arch = dict(embed_dims=128, num_layers=2, num_heads=2, feedforward_channels=512)
    with pytest.raises(CheckpointError, match='num_registers=4.*rope=.*swiglu=True.*qkv_bias=False'):
        load_backbone(ObjectViT(arch, norm_cfg=dict(type='LN', eps=1e-5)), state)
    with pytest.raises(CheckpointError, match='eps 1e-05'):
        load_backbone(ObjectViT(arch), state)


def test_heads_that_differ_are_refused(tmp_path):
    arch = dict(embed_dims=128, num_layers=2, num_heads=2, feedforward_channels=256)
    model = ObjectViT(arch, img_size=32, patch_size=8)
    torch.save(dict(state_dict=model.state_dict(), meta=model.settings()), tmp_path / 'two.pth')
    with pytest.raises(CheckpointError, match='2 attention heads and ObjectViT has 4'):
        load_backbone(ObjectViT({**arch, 'num_heads': 4}, img_size=32, patch_size=8), tmp_path / 'two.pth')


def test_files_tell_what_tensors_do_not(tmp_path):
    model = timm_model('vit_small_patch16_dinov3')
    torch.save(dict(state_dict=model.state_dict(), meta=dict(mean=[1, 2, 3], std=[4, 5, 6])), tmp_path / 'a.pth')
    for out in ('b.safetensors', 'c.pth'):
        transfer(tmp_path / 'a.pth', tmp_path / out, 'timm', heads=2)
        meta = read_meta(tmp_path / out)
        assert (meta['num_heads'], meta['patch_size'], meta['norm_eps'], meta['mean']) == (2, 16, 1e-5, [1, 2, 3])
    transfer(tmp_path / 'a.pth', tmp_path / 'hf', 'huggingface', heads=2)
    config = json.loads((tmp_path / 'hf' / 'config.json').read_text())
    assert config['model_type'] == 'dinov3_vit' and config['num_attention_heads'] == 2
    assert read_meta(tmp_path / 'hf' / 'model.safetensors')['std'] == [4, 5, 6]
