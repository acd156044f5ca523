"""ObjectViT, neck, head, ODIS: properties and independent references."""

import pytest
import torch
from mmpretrain.registry import MODELS

import odis_mm  # noqa: F401
from helpers import ODIS_CONFIG, losses_of, make_batch, make_odis, make_vit
from odis_mm.datasets.transforms import mask_positions
from odis_mm.utils.errors import ConfigError


def test_teacher_starts_equal_and_moves_by_the_papers_convention():
    model, data = make_odis(momentum=dict(start=0.75, end=1.0)), make_batch()
    for (name, t), s in zip(model.teacher['backbone'].named_parameters(), model.backbone.parameters()):
        assert torch.equal(t, s), name
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    sum(v for k, v in losses_of(model, data).items() if 'loss' in k).backward()
    old = {n: p.clone() for n, p in model.teacher.named_parameters()}
    optimizer.step()
    model.after_optimizer_step()
    for name, p in model.teacher.named_parameters():
        student = model.get_parameter(name)
        torch.testing.assert_close(p, 0.75 * old[name] + 0.25 * student)
    assert any(not torch.equal(p, old[n]) for n, p in model.teacher.named_parameters())


def test_gradients_reach_all_of_the_student_and_nothing_else():
    model = make_odis()
    sum(v for k, v in losses_of(model, make_batch()).items() if 'loss' in k).backward()
    for name, p in model.named_parameters():
        if name.startswith('teacher.'):
            assert not p.requires_grad and p.grad is None, name
        else:
            assert p.grad is not None and p.grad.abs().max() > 0, name


def test_teacher_has_no_drop_path():
    model = make_odis(backbone=dict(drop_path_rate=0.5)).train()
    images = torch.randn(16, 3, 32, 32)
    assert torch.equal(model.teacher['backbone'](images)[-1], model.teacher['backbone'](images)[-1])
    assert not torch.equal(model.backbone(images)[-1], model.backbone(images)[-1])


def test_loss_equals_a_slow_reference():
    model, data = make_odis(), make_batch()
    for center in (model.head.token_center, model.head.patch_center):
        center.value.normal_(std=0.1)
    got = losses_of(model, data, iteration=35)
    t = model.head.teacher_temp
    assert t == pytest.approx(0.04 + 0.03 * 3.5 / 30)
    views, samples = model.data_preprocessor(data, True)['inputs'], data['data_samples']
    batch, visible = 3, samples['object_visible']
    obj_t, obj_s, patch = [], [], 0.0
    for v in range(2):
        rows = slice(v * batch, (v + 1) * batch)
        mask, mim = samples['object_mask'][0][rows], samples['mim_mask'][rows]
        teacher = model.teacher['neck'](model.teacher['backbone'](views[0][rows], mask)[-1])
        student = model.neck(model.backbone(views[0][rows], mask, (mim, model.mask_token))[-1])
        obj_t.append(((teacher[:, 0] - model.head.token_center.value) / t).softmax(-1))
        obj_s.append(student[:, 0])
        h = -(
            ((teacher[:, 1:] - model.head.patch_center.value) / t).softmax(-1) * (student[:, 1:] / 0.1).log_softmax(-1)
        ).sum(-1)
        patch += sum((h[i] * mim[i]).sum() / mim[i].sum() for i in range(batch) if mim[i].any()) / batch / 2
    for v in range(2):
        obj_s.append(model.neck(model.backbone(views[1][v * batch : (v + 1) * batch])[-1][:, 0]))
    pairs = []
    for q in range(2):
        for v in range(4):
            seen = visible[:, q] & visible[:, v]
            if v != q and seen.any():
                pairs.append(-(obj_t[q] * (obj_s[v] / 0.1).log_softmax(-1)).sum(-1)[seen].mean())
    torch.testing.assert_close(got['loss_patch'], patch)
    torch.testing.assert_close(got['loss_obj'], sum(pairs) / len(pairs))


def test_batch_of_one_and_a_batch_without_masked_patches():
    model, data = make_odis(), make_batch(batch=1, seed=3)
    data['data_samples']['mim_mask'][:] = False
    data['data_samples'].update(mask_positions(data['data_samples']['mim_mask']))
    losses = losses_of(model, data)
    assert losses['loss_patch'].item() == 0
    sum(v for k, v in losses.items() if 'loss' in k).backward()
    assert model.mask_token.grad.abs().max() == 0, 'in the graph: DDP needs no search for unused parameters'


def test_options():
    model = make_odis(lambda_img=0.5, backbone=dict(cls_beside_object=True, num_object_tokens=2))
    losses = losses_of(model, make_batch())
    assert {'loss_obj', 'loss_img', 'loss_patch'} <= set(losses)
    assert 'loss_patch' not in losses_of(make_odis(lambda_patch=0.0), make_batch())
    with pytest.raises(ValueError, match='cls_beside_object=True'):
        make_odis(lambda_img=0.5)
    data = make_batch()
    plain = losses_of(make_odis(masked_attention=False), data)
    data['data_samples']['object_mask'][0][:] = True
    data['data_samples']['object_visible'][:] = True
    torch.testing.assert_close(plain['loss_obj'], losses_of(make_odis(), data)['loss_obj'])


@pytest.mark.parametrize('masked_attention', [True, False])
def test_masks_of_other_patches_are_told(masked_attention):
    with pytest.raises(ConfigError, match='into 16 patches, model.backbone.patch_size=16 into 4: set patch'):
        losses_of(make_odis(masked_attention=masked_attention, backbone=dict(patch_size=16)), make_batch())


def test_a_model_without_its_schedule_says_so():
    model = make_odis()
    with pytest.raises(ConfigError, match='SelfSupScheduleHook'):
        model(**model.data_preprocessor(make_batch(), True), mode='loss')


def test_bf16_autocast_keeps_losses_in_float32_and_close():
    model, data = make_odis(), make_batch()
    exact = losses_of(model, data)
    with torch.autocast('cpu', torch.bfloat16):
        half = losses_of(model, data)
    for key, value in exact.items():
        assert half[key].dtype == torch.float32
        assert half[key].item() == pytest.approx(value.item(), rel=0.05), key


def test_export_holds_the_teacher_under_backbone():
    model = make_odis()
    with torch.no_grad():
        model.backbone.cls_token.add_(1)
    state = model.teacher_backbone_state()
    stock = make_vit('VisionTransformer')
    stock.load_state_dict({k.removeprefix('backbone.'): v for k, v in state.items()})
    torch.testing.assert_close(stock.cls_token, model.teacher['backbone'].cls_token)
    assert not torch.equal(stock.cls_token, model.backbone.cls_token)


@pytest.mark.parametrize(
    'changed, told',
    [
        (dict(neck=dict(num_prototypes=7)), 'model.neck has 7 prototypes and model.head .DistillationHead. takes 24'),
        (dict(neck=dict(in_channels=64)), 'model.neck.in_channels=64, but model.backbone is 32 wide'),
        (dict(momentum=0.99), r'model.momentum is dict\(start, end\)'),
    ],
)
def test_parts_that_do_not_fit_are_refused_when_they_are_built(changed, told):
    with pytest.raises(ConfigError, match=told):
        make_odis(**changed)


def test_an_embedding_head_takes_no_logits():
    with pytest.raises(ConfigError, match='to 0 in the neck for an EmbeddingHead'):
        MODELS.build({**ODIS_CONFIG, 'head': dict(type='EmbeddingHead')})
