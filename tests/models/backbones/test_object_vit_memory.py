"""What the blocks of an ObjectViT keep for the backward pass, and the forms that their attention takes."""

import contextlib
import copy

import pytest
import torch

import odis_mm  # noqa: F401
from helpers import losses_and_gradients_of, make_odis, noisy_vit, random_images, random_masks
from odis_mm.analysis.cost import Allocations, forms_of_gpus
from odis_mm.models.backbones import block


def keeping_all(then, norm, x, lean):
    return then(norm(x))


@pytest.mark.parametrize('bf16', [False, True])
@pytest.mark.parametrize('form', ['cpu', 'gpu'])
@pytest.mark.parametrize(
    'packed, options',
    [
        (False, dict()),
        (True, dict()),
        (False, dict(drop_path_rate=0.4, layer_scale_init_value=0.5)),
        (False, dict(with_cp=True)),
    ],
)
def test_norms_computed_again_change_no_bit(monkeypatch, packed, options, form, bf16):
    model = make_odis(packed=packed)
    model.backbone = noisy_vit(**options)
    plain = copy.deepcopy(model)
    plain.backbone.with_cp = False
    found = []
    for variant in (model, plain):
        if variant is plain:
            monkeypatch.setattr(block, 'after_norm', keeping_all)
        with (
            torch.autocast('cpu', torch.bfloat16, enabled=bf16),
            forms_of_gpus(variant) if form == 'gpu' else contextlib.nullcontext(),
        ):
            found.append(losses_and_gradients_of(variant))
    assert len(found[0][1]) == len(found[1][1]) > 10
    torch.testing.assert_close(*found, atol=0, rtol=0)


@pytest.mark.parametrize('bf16', [False, True])
def test_norms_are_not_kept(monkeypatch, bf16):
    model, kept = noisy_vit(), []
    for after_norm in (block.after_norm, keeping_all):
        monkeypatch.setattr(block, 'after_norm', after_norm)
        with Allocations() as memory, torch.autocast('cpu', torch.bfloat16, enabled=bf16):
            out = model(random_images(16), random_masks(16))[-1]
            kept.append(memory.current)
            del out
    norms = 16 * 17 * model.embed_dims * 2 * model.num_layers * (2 if bf16 else 4)
    assert kept[1] - kept[0] == norms
