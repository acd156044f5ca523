"""Tokens of all objects of an image from one pass."""

import pytest
import torch
import torch.nn.functional as F

import odis_mm  # noqa: F401
from odis_mm.evaluation import FrozenBackbone
from odis_mm.models import ObjectViT
from odis_mm.utils.errors import ConfigError

ARCH = dict(embed_dims=32, num_layers=3, num_heads=4, feedforward_channels=64)
KINDS = dict(
    plain={},
    class_token=dict(cls_beside_object=True),
    two_tokens=dict(num_object_tokens=2),
    registers=dict(num_registers=3),
    rotary=dict(rope=dict(base=100), num_registers=2),
    windows=dict(window_size=2),
)


def vit(**kwargs):
    torch.manual_seed(0)
    model = ObjectViT(arch=ARCH, img_size=32, patch_size=8, drop_path_rate=0.0, **kwargs)
    model.init_weights()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model.eval()


def inputs(images=3, objects=4):
    g = torch.Generator().manual_seed(1)
    return torch.randn(images, 3, 32, 32, generator=g), torch.rand(images, objects, 16, generator=g) < 0.4


@pytest.mark.parametrize('kind', list(KINDS))
def test_nobody_sees_the_readers(kind):
    model, (images, masks) = vit(**KINDS[kind]), inputs()
    with torch.no_grad():
        plain = model(images)[-1]
    tokens, objects = model.read_objects(images, masks)
    torch.testing.assert_close(tokens, plain, atol=1e-5, rtol=1e-5)
    for i in range(masks.shape[1]):  # nor do they see each other
        torch.testing.assert_close(
            model.read_objects(images, masks[:, i : i + 1])[1][:, 0], objects[:, i], atol=1e-5, rtol=1e-5
        )
    assert (objects[:, 0] - objects[:, 1]).abs().max() > 1e-2


@pytest.mark.parametrize('kind', ['plain', 'registers', 'rotary', 'windows'])
def test_who_reads_everything_is_the_object_token_of_the_whole_image(kind):
    model, (images, masks) = vit(**KINDS[kind]), inputs()
    tokens, objects = model.read_objects(images, torch.ones_like(masks))
    torch.testing.assert_close(objects, tokens[:, :1].expand_as(objects), atol=1e-5, rtol=1e-5)


def test_only_the_object_s_patches_matter_in_the_last_block():
    """With one block the masked pass is the same, as patches that saw another [OBJ] are not read any more."""
    model = vit(**{**KINDS['class_token'], 'num_object_tokens': 2})
    model.layers, model.num_layers, model.out_indices = model.layers[:1], 1, [0]
    images, masks = inputs()
    _, objects = model.read_objects(images, masks)
    with torch.no_grad():
        for i in range(masks.shape[1]):
            wanted = model(images, masks[:, i])[-1][:, model.object_slice].mean(1)
            torch.testing.assert_close(objects[:, i], wanted, atol=1e-5, rtol=1e-5)


def test_a_frozen_backbone_reads_objects_of_any_number():
    frozen = FrozenBackbone(vit())
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    masks = inputs(objects=6)[1]
    given = [masks[0, :4], masks[1, :0], masks[2, :6]]
    whole, token = frozen.read_objects(images, given)
    assert token.shape == (10, 32)
    torch.testing.assert_close(whole.map, frozen(images).map)
    apart = [frozen.read_objects(images[i : i + 1], [own])[1] for i, own in enumerate(given)]
    torch.testing.assert_close(token, torch.cat(apart), atol=1e-5, rtol=1e-5)
    masked = torch.cat(
        [frozen(images[i].expand(len(own), -1, -1, -1), own).token for i, own in enumerate(given) if len(own)]
    )
    assert F.cosine_similarity(token, masked).min() > 0.9
    assert frozen.read_objects(images, [masks[0, :0]] * 3)[1].shape == (0, 32)


def test_wrong_masks_are_named():
    with pytest.raises(ConfigError, match=r'bool \[3, objects, 16\]'):
        vit().read_objects(inputs()[0], torch.ones(3, 2, 9, dtype=torch.bool))
