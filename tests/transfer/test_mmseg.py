"""mmsegmentation's own ViT, run: what is written for it loads there strictly and computes the same."""

import mmcv
import pytest
import torch

from helpers import stock_vit
from odis_mm.transfer import build_vit, convert, read_checkpoint, read_vit, transfer

ARCH = dict(embed_dims=32, num_layers=3, num_heads=2, feedforward_channels=64)


@pytest.fixture(params=[True, False])
def segmentation_vit(request, monkeypatch):
    """mmseg's ViT of ``ARCH`` with all its tokens, with and without a bias of its patches; it refuses mmcv from 2.2 on,
    which its backbone does not mind."""
    monkeypatch.setattr(mmcv, '__version__', '2.1.0')
    pytest.importorskip('mmseg', reason='mmsegmentation is not installed: odis_mm[test-neighbours]')
    from mmseg.models.backbones import VisionTransformer

    torch.manual_seed(3)
    model = VisionTransformer(
        img_size=(32, 32),
        patch_size=8,
        embed_dims=32,
        num_layers=3,
        num_heads=2,
        mlp_ratio=2,
        out_indices=-1,
        final_norm=True,
        output_cls_token=True,
        patch_bias=request.param,
        norm_cfg=dict(type='LN', eps=1e-6),
    )
    model.init_weights()
    model.eval()  # returns nothing
    return model


@torch.no_grad()
@pytest.mark.parametrize('layer_scale', [0.0, 0.3])
def test_what_is_written_computes_the_same_there(segmentation_vit, layer_scale, tmp_path):
    state = stock_vit(ARCH, layer_scale_init_value=layer_scale).state_dict()
    torch.save(dict(state_dict=state, meta=dict(num_heads=2)), tmp_path / 'ours.pth')
    transfer(tmp_path / 'ours.pth', tmp_path / 'mmseg.pth', 'mmseg')
    written = {key.removeprefix('backbone.'): value for key, value in read_checkpoint(tmp_path / 'mmseg.pth').items()}
    if segmentation_vit.patch_embed.projection.bias is None:  # its default
        pytest.skip('our ViTs have a bias of their patches')
    segmentation_vit.load_state_dict(written, strict=True)
    for size in ((32, 32), (24, 40)):
        images = torch.randn(2, 3, *size)
        feature_map, cls = segmentation_vit(images)[-1]
        found = build_vit(state, 2)(images)[-1]
        expected = torch.cat((cls[:, None], feature_map.flatten(2).mT), dim=1)
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@torch.no_grad()
def test_its_own_file_is_read(segmentation_vit):
    with torch.no_grad():
        for parameter in segmentation_vit.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    state = convert(read_vit({f'backbone.{k}': v for k, v in segmentation_vit.state_dict().items()}), 'odis_mm').state
    images = torch.randn(2, 3, 32, 32)
    feature_map, cls = segmentation_vit(images)[-1]
    found = build_vit(state, 2)(images)[-1]
    assert (found[:, 0] - cls).abs().max() <= 1e-5 * cls.abs().max()
    assert (found[:, 1:].mT.unflatten(2, (4, 4)) - feature_map).abs().max() <= 1e-5 * feature_map.abs().max()
