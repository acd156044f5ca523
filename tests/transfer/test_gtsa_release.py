"""The layout of GTSA's official release (encoders under timm's names, with a class token) into our backbones, by one
command."""

import pytest
import torch
from mmpretrain.registry import MODELS
from timm.models.vision_transformer import VisionTransformer

import odis_mm  # noqa: F401
from odis_mm.cli.checkpoints import transfer_main
from odis_mm.transfer import load_backbone, read_checkpoint

ARCH = dict(embed_dims=32, num_layers=3, num_heads=2, feedforward_channels=64)


def timm_vit(seed):
    torch.manual_seed(seed)
    vit = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2, mlp_ratio=2, num_classes=0)
    with torch.no_grad():
        for parameter in vit.parameters():  # no tensor equal to another, or a swap would not show
            parameter.normal_(std=0.2)
    return vit.eval()


@pytest.fixture
def official(tmp_path):
    """A file of random tensors under the release's names; its teacher, as timm's ViT."""
    student, teacher = timm_vit(0), timm_vit(1)
    state = {
        f'module.{part}.{key}': value
        for part, vit in (('base_encoder', student), ('momentum_encoder', teacher))
        for key, value in vit.state_dict().items()
    }
    state['module.predictor.0.weight'] = torch.zeros(4, 4)
    torch.save(dict(epoch=100, arch='vit_small', state_dict=state), tmp_path / 'gtsa.pth')
    return tmp_path / 'gtsa.pth', teacher


def assert_same_patches(backbone, teacher):
    images = torch.randn(2, 3, 32, 32)
    backbone.eval()
    with torch.no_grad():
        torch.testing.assert_close(
            backbone(images)[-1],
            teacher.forward_features(images)[:, 1:].transpose(1, 2).unflatten(2, (4, 4)),
            atol=1e-5,
            rtol=1e-5,
        )


def stock(**kwargs):
    return MODELS.build(
        dict(type='VisionTransformer', arch=ARCH, img_size=32, patch_size=8, out_type='featmap', **kwargs)
    )


def test_the_detectors_backbone_takes_the_file_as_it_is(official):
    path, teacher = official
    backbone = stock(init_cfg=dict(type='VerifiedPretrained', checkpoint=str(path)))
    backbone.init_weights()
    assert_same_patches(backbone, teacher)


def test_the_pretraining_backbone_takes_it(official):
    path, teacher = official
    backbone = MODELS.build(dict(type='ObjectViT', arch=ARCH, img_size=32, patch_size=8))
    report = load_backbone(backbone, str(path))
    assert len(report.matched) == len(backbone.state_dict()) and not report.unexpected and not report.expected_missing
    images = torch.randn(2, 3, 32, 32)
    backbone.eval()
    with torch.no_grad():
        torch.testing.assert_close(backbone(images)[-1], teacher.forward_features(images), atol=1e-5, rtol=1e-5)


def test_the_command_recognises_and_converts_it(official, tmp_path, capsys):
    path, teacher = official
    transfer_main([str(path)])
    assert 'GTSA, under momentum_encoder.*' in capsys.readouterr().out
    transfer_main([str(path), str(tmp_path / 'out.pth'), '--heads', '2'])
    backbone = stock()
    backbone.load_state_dict(
        {key.removeprefix('backbone.'): value for key, value in read_checkpoint(tmp_path / 'out.pth').items()}
    )
    assert_same_patches(backbone, teacher)
