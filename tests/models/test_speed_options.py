"""What makes training faster leaves its numbers as they are: every option beside the plain path."""

import copy

import pytest
import torch
from mmpretrain.models import VisionTransformer

from helpers import ARCH, make_batch, make_odis, noisy_vit, random_images, random_masks
from odis_mm.analysis.cost import count_flops, forms_of_gpus, total_loss
from odis_mm.models import ObjectViT
from odis_mm.models.losses import pairwise_cross_entropy, patch_cross_entropy


# ---- backbone
@pytest.mark.parametrize(
    'options',
    [dict(), dict(drop_path_rate=0.4), dict(layer_scale_init_value=0.5), dict(drop_path_rate=0.4, with_cp=True)],
)
def test_blocks_are_mmpretrain_s_with_their_random_numbers(options):
    ours, stock = (
        noisy_vit(**options),
        VisionTransformer(
            ARCH, img_size=32, patch_size=8, out_type='raw', **{k: v for k, v in options.items() if k != 'with_cp'}
        ),
    )
    stock.load_state_dict(ours.state_dict())
    found = []
    for model in (ours, stock):
        torch.manual_seed(5)
        out = model(random_images(8))[-1]
        (out * random_images(8, 1, 3).view(8, 3)[:, :1, None]).sum().backward()
        found.append([out, *(p.grad for p in model.parameters())])
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    'options', [dict(), dict(drop_path_rate=0.4), dict(num_object_tokens=2, cls_beside_object=True), dict(with_cp=True)]
)
@pytest.mark.parametrize('form', ['cpu', 'gpu'])
def test_rows_that_are_read_are_those_of_the_whole(options, form):
    model, index = noisy_vit(**options), torch.tensor([0, 7, 15, 16, 40])
    found = []
    for patches in (None, index):
        torch.manual_seed(5)
        with forms_of_gpus(model) if form == 'gpu' else torch.enable_grad():
            out = model(random_images(), random_masks(), (random_masks(), torch.ones(ARCH['embed_dims'])), patches)
        t = model.num_leading_tokens
        leading, kept = out if patches is not None else (out[-1][:, :t], out[-1][:, t:].flatten(0, 1)[index])
        model.zero_grad()
        (leading.square().sum() + (kept * torch.arange(5.0)[:, None]).sum()).backward()
        found.append([leading, kept, *(p.grad for p in model.parameters())])
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-5)


def test_reading_fewer_rows_computes_less():
    model = noisy_vit()
    assert count_flops(lambda: model(random_images(), patches=torch.tensor([3]))) < 0.88 * count_flops(
        lambda: model(random_images())
    )


@pytest.mark.parametrize(
    'options', [dict(), dict(num_object_tokens=2, cls_beside_object=True), dict(num_object_tokens=2)]
)
def test_masked_attention_has_one_result_in_all_its_forms(options):
    model = noisy_vit(**options)
    plain = model(random_images(), random_masks())[-1]
    with forms_of_gpus(model):
        torch.testing.assert_close(model(random_images(), random_masks())[-1], plain, atol=1e-5, rtol=1e-5)
    assert (plain - model(random_images())[-1]).abs().max() > 0.01
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        model.zero_grad()
        with torch.autocast('cpu', torch.bfloat16, enabled=dtype == torch.bfloat16):
            out = model(random_images(), random_masks())[-1].float()
        torch.testing.assert_close(out, plain, atol=0.15, rtol=0.1)
        out.square().mean().backward()
        gradients.append(model.layers[0].attn.qkv.weight.grad.clone())
    assert torch.cosine_similarity(*(g.flatten() for g in gradients), dim=0) > 0.99


def test_half_precision_on_cpus_masks_exactly():
    model = noisy_vit().bfloat16()
    mask = random_masks()
    x = random_images().bfloat16()
    other = x.clone()  # a change of the first layer's keys that [OBJ] may not see, in a network of one layer
    model.layers = model.layers[:1]
    model.num_layers, model.out_indices = 1, [0]
    hidden = (~mask).float().view(3, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3).bfloat16()
    other += 3 * hidden
    assert torch.equal(model(x, mask)[-1][:, 0], model(other, mask)[-1][:, 0])
    assert not torch.equal(model(x)[-1][:, 0], model(other)[-1][:, 0])


def test_packed_resolutions_are_those_apart():
    model = noisy_vit()
    views, masks = [random_images(), random_images(4, 16)], [random_masks(), None]
    apart = [model(views[0], masks[0], patches=torch.tensor([5, 20])), model(views[1], patches=torch.tensor([3]))]
    together = model(views, masks, patches=[torch.tensor([5, 20]), torch.tensor([3])])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model(views, masks), [model(views[0], masks[0]), model(views[1])], atol=1e-5, rtol=1e-5)


# ---- losses
def losses_and_gradients(model, **switch):
    for name, value in switch.items():
        setattr(model, name, value)
    data = model.data_preprocessor(make_batch(batch=3), True)
    model.zero_grad()
    torch.manual_seed(7)
    losses = model.compute_losses(data['inputs'], data['data_samples'])
    total_loss(losses).backward()
    return losses, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def as_compiled(model, backend):
    torch._dynamo.reset()
    for backbone in (model.backbone, model.teacher['backbone']):
        backbone.compile_blocks(backend=backend)


def reading_all(model):
    """The plain path: every row of the last block, of which the needed ones are taken afterwards."""
    for backbone in (model.backbone, model.teacher['backbone']):

        def forward(images, object_mask=None, replace=None, patches=None, backbone=backbone):
            tokens = ObjectViT.forward(backbone, images, object_mask, replace)[-1]
            t = backbone.num_leading_tokens
            return tokens[:, :t], tokens[:, t:].flatten(0, 1)[patches]

        backbone.forward = forward


OPTIONS = dict(
    reading_all=reading_all,
    packed=lambda model: setattr(model, 'packed', True),
    with_cp=lambda model: setattr(model.backbone, 'with_cp', True),
    compiled=lambda model: as_compiled(model, 'aot_eager'),
)


@pytest.mark.parametrize('name', list(OPTIONS))
def test_option_leaves_losses_and_gradients(name):
    model = make_odis()
    with torch.no_grad():
        for parameter in model.teacher.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    model.backbone.drop_path_rate = 0.0
    other = copy.deepcopy(model)
    OPTIONS[name](other)
    torch.testing.assert_close(losses_and_gradients(other), losses_and_gradients(model), atol=1e-5, rtol=1e-4)


def test_losses_are_in_float32_under_autocast():
    torch.manual_seed(0)
    teacher, logits = torch.randn(2, 3, 1, 50).softmax(-1), torch.randn(4, 3, 1, 50)
    weight = torch.rand(3)
    found = []
    for enabled in (False, True):
        with torch.autocast('cpu', torch.bfloat16, enabled=enabled):
            found.append(
                [
                    pairwise_cross_entropy(teacher, logits, 0.1),
                    patch_cross_entropy(teacher[0, :, 0], logits[0, :, 0], 0.1, weight),
                ]
            )
    torch.testing.assert_close(*found, atol=0, rtol=0)


def test_all_patches_for_the_center_are_read_nevertheless():
    model = make_odis(head=dict(type='DistillationHead', num_prototypes=24, patch_center='all'))
    losses_and_gradients(model)
    assert model.head.patch_center.pending[-1] == 2 * 3 * 16  # globals, images, patches


def test_compiled_blocks_run_where_masks_are():
    model, calls = noisy_vit(), []

    def backend(graph, example):
        calls.append(graph)
        return graph.forward

    torch._dynamo.reset()
    model.compile_blocks(backend=backend)
    plain = noisy_vit()(random_images(), random_masks())[-1]
    torch.testing.assert_close(model(random_images(), random_masks())[-1], plain, atol=1e-5, rtol=1e-5)
    assert len(calls) == 1  # one graph for all blocks


# ---- host syncs


# ---- photometric
