"""Hugging Face's own models, run: files they write are read, files written for them load there with nothing missing."""

import pytest
import torch
from mmengine.registry import init_default_scope

from odis_mm.transfer import build_backbone, read_meta, transfer

transformers = pytest.importorskip('transformers', reason='transformers is not installed: odis_mm[test-neighbours]')

BASE = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=40, patch_size=8)
MODELS = {
    'ViT': ('ViTConfig', 'ViTModel', dict(intermediate_size=96, layer_norm_eps=1e-6)),
    'ViT of another eps': ('ViTConfig', 'ViTModel', dict(intermediate_size=96)),
    'Dinov2': ('Dinov2Config', 'Dinov2Model', dict(mlp_ratio=2)),
    'Dinov2 SwiGLU': ('Dinov2Config', 'Dinov2Model', dict(mlp_ratio=2, use_swiglu_ffn=True)),
    'Dinov2WithRegisters': ('Dinov2WithRegistersConfig', 'Dinov2WithRegistersModel', dict(mlp_ratio=2)),
    'DINOv3': ('DINOv3ViTConfig', 'DINOv3ViTModel', dict(intermediate_size=96, num_register_tokens=4)),
    'DINOv3 SwiGLU': (
        'DINOv3ViTConfig',
        'DINOv3ViTModel',
        dict(intermediate_size=96, num_register_tokens=4, use_gated_mlp=True, hidden_act='silu'),
    ),
}


def filled(name):
    config, model, options = MODELS[name]
    torch.manual_seed(0)
    extra = dict(add_pooling_layer=False) if model == 'ViTModel' else {}
    model = getattr(transformers, model)(getattr(transformers, config)(**BASE, **options), **extra)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


@torch.no_grad()
def tokens(model, images):
    """Hugging Face's last hidden state; a ViT of another size than its config's must be asked for it."""
    kwargs = dict(interpolate_pos_encoding=True) if type(model).__name__ == 'ViTModel' else {}
    return model(pixel_values=images, **kwargs).last_hidden_state


@torch.no_grad()
@pytest.mark.parametrize('name', list(MODELS))
def test_features_are_the_same_and_go_back(name, tmp_path):
    init_default_scope('mmpretrain')
    model = filled(name)
    model.save_pretrained(tmp_path / 'theirs')
    file = tmp_path / 'theirs' / 'model.safetensors'
    vit = build_backbone(file)  # heads and eps from config.json
    for size in ((40, 40), (32, 56)):
        images = torch.randn(2, 3, *size)
        expected = tokens(model, images)
        assert (vit(images)[-1] - expected).abs().max() <= 1e-5 * expected.abs().max(), size
    transfer(file, tmp_path / 'ours.pth', 'odis_mm')
    assert read_meta(tmp_path / 'ours.pth')['num_heads'] == 4
    transfer(tmp_path / 'ours.pth', tmp_path / 'back', 'huggingface')
    extra = (
        dict(add_pooling_layer=False) if 'ViT' in type(model).__name__ and 'DINO' not in type(model).__name__ else {}
    )
    again, info = type(model).from_pretrained(tmp_path / 'back', output_loading_info=True, **extra)
    assert not info['missing_keys'] and not info['unexpected_keys'] and not info['mismatched_keys']
    again.eval()
    images = torch.randn(2, 3, 40, 40)
    expected = tokens(model, images)
    assert (tokens(again, images) - expected).abs().max() <= 1e-5 * expected.abs().max()
