"""ObjectViT, neck, head, ODIS: properties and independent references."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from mmpretrain.registry import MODELS

import odis_mm  # noqa: F401
from odis_mm.models.heads import Center, DistillationHead, sinkhorn_knopp
from odis_mm.models.losses import pairwise_cross_entropy, patch_cross_entropy
from odis_mm.utils.schedules import cosine, linear

ARCH = dict(embed_dims=32, num_layers=3, num_heads=4, feedforward_channels=64)
K = 24


def make_vit(type_='ObjectViT', **kwargs):
    torch.manual_seed(0)
    vit = MODELS.build({**dict(type=type_, arch=ARCH, img_size=32, patch_size=8, out_type='raw'), **kwargs})
    vit.init_weights()
    vit.eval()  # returns None in mmpretrain
    return vit


def make_odis(**kwargs):
    cfg = dict(
        type='ODIS',
        backbone=dict(type='ObjectViT', arch=ARCH, img_size=32, patch_size=8, drop_path_rate=0.0),
        neck=dict(type='ProjectionNeck', in_channels=32, hidden_channels=40, bottleneck_channels=16, num_prototypes=K),
        head=dict(type='DistillationHead', num_prototypes=K),
    )
    for key, value in kwargs.items():
        cfg[key] = {**cfg[key], **value} if isinstance(value, dict) and key in cfg else value
    torch.manual_seed(1)
    model = MODELS.build(cfg)
    model.init_weights()
    return model


def make_batch(batch=3, num_local=2, seed=0):
    g = torch.Generator().manual_seed(seed)
    mim = torch.rand(2 * batch, 16, generator=g) < 0.4
    mim[0] = False  # an image without masked patches
    return dict(
        inputs=[
            torch.randint(0, 256, (2 * batch, 3, 32, 32), generator=g, dtype=torch.uint8),
            torch.randint(0, 256, (num_local * batch, 3, 16, 16), generator=g, dtype=torch.uint8),
        ],
        data_samples=dict(
            object_mask=[
                torch.rand(2 * batch, 16, generator=g) < 0.5,
                torch.ones(num_local * batch, 4, dtype=torch.bool),
            ],
            object_visible=torch.rand(batch, 2 + num_local, generator=g) < 0.8,
            mim_mask=mim,
        ),
    )


def losses_of(model, data, iteration=0):
    model.set_progress(iteration, 100, 10)
    return model(**model.data_preprocessor(copy.deepcopy(data), True), mode='loss')


# ---------------------------------------------------------------------------------------------------------------- backbone
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


# -------------------------------------------------------------------------------------------------------------- neck, head
def test_prototype_logits_are_scaled_cosines():
    neck = MODELS.build(
        dict(
            type='ProjectionNeck',
            in_channels=8,
            hidden_channels=12,
            bottleneck_channels=6,
            num_prototypes=5,
            norm_trainable=False,
        )
    )
    neck.init_weights()
    x = torch.randn(7, 8)
    expected = F.cosine_similarity(neck.mlp(x)[:, None], neck.prototypes.weight_v[None], dim=-1)
    torch.testing.assert_close(neck(x), expected)
    assert neck.prototype_parameters() == [neck.prototypes.weight_v]


def test_uniform_output_costs_ln_k():
    targets = torch.softmax(torch.randn(2, 3, 1, K), -1)
    assert pairwise_cross_entropy(targets, torch.zeros(4, 3, 1, K), 0.1).item() == pytest.approx(math.log(K), rel=1e-6)


def test_pairwise_loss_equals_loops():
    torch.manual_seed(0)
    teacher, student = torch.softmax(torch.randn(2, 5, 1, K), -1), torch.randn(4, 5, 1, K)
    visible = torch.rand(5, 4) < 0.6
    pairs = []
    for q in range(2):
        for v in range(4):
            images = [i for i in range(5) if visible[i, q] and visible[i, v]]
            if v != q and images:
                pairs.append(
                    sum(-(teacher[q, i, 0] * F.log_softmax(student[v, i, 0] / 0.1, -1)).sum() for i in images)
                    / len(images)
                )
    torch.testing.assert_close(pairwise_cross_entropy(teacher, student, 0.1, visible), sum(pairs) / len(pairs))


def test_no_visible_object_gives_zero_with_a_graph():
    student = torch.randn(3, 2, 1, K, requires_grad=True)
    loss = pairwise_cross_entropy(
        torch.softmax(torch.randn(2, 2, 1, K), -1), student, 0.1, torch.zeros(2, 3, dtype=torch.bool)
    )
    loss.backward()
    assert loss.item() == 0 and student.grad.abs().max() == 0


def test_patch_loss_equals_loops():
    model, data = make_odis(), make_batch()
    samples = model.data_preprocessor(data, True)['data_samples']
    mask = data['data_samples']['mim_mask']
    teacher, student = torch.softmax(torch.randn(6, 16, K), -1), torch.randn(6, 16, K)
    per_image = [
        sum(-(teacher[i, n] * F.log_softmax(student[i, n] / 0.1, -1)).sum() for n in mask[i].nonzero().flatten())
        / mask[i].sum()
        for i in range(6)
        if mask[i].any()
    ]
    at = samples['mim_index']
    torch.testing.assert_close(
        patch_cross_entropy(teacher.flatten(0, 1)[at], student.flatten(0, 1)[at], 0.1, samples['mim_weight']),
        sum(per_image) / 6,
    )


def test_center_is_a_running_mean_and_moves_once_per_step():
    center = Center(K, 0.9)
    first, second = torch.randn(4, K), torch.randn(2, 3, K)
    center.observe(first)
    center.observe(second)
    assert center.value.abs().max() == 0, 'only an optimizer step moves it'
    center.step()
    torch.testing.assert_close(center.value, 0.1 * torch.cat((first, second.flatten(0, 1))).mean(0))
    before = center.value.clone()
    center.step()  # nothing observed
    torch.testing.assert_close(center.value, before)


def test_center_of_all_patches_equals_that_of_their_logits():
    model, data = make_odis(head=dict(patch_center='all')), make_batch()
    losses_of(model, data)
    views = model.data_preprocessor(data, True)
    with torch.no_grad():
        patches = model.teacher['backbone'](views['inputs'][0], views['data_samples']['object_mask'][0])[-1][:, 1:]
        expected = model.teacher['neck'](patches).flatten(0, 1).mean(0)
    model.head.step()
    torch.testing.assert_close(model.head.patch_center.value, 0.1 * expected)


def test_wrong_patch_center_is_named():
    with pytest.raises(ValueError, match="patch_center is 'some'"):
        DistillationHead(K, patch_center='some')


@pytest.mark.parametrize('shape', [(7, K), (2, 5, 1, K)])
def test_sinkhorn_equals_loops_and_converges_to_equal_use(shape):
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    rows = torch.exp(logits.double().flatten(0, -2) / 0.2)
    for _ in range(3):
        for k in range(K):
            rows[:, k] /= rows[:, k].sum()
        for row in rows:
            row /= row.sum()
    torch.testing.assert_close(sinkhorn_knopp(logits, 0.2), rows.float().view(shape), atol=1e-5, rtol=1e-4)
    even = sinkhorn_knopp(logits, 0.2, iterations=300).flatten(0, -2)
    torch.testing.assert_close(even.sum(0), torch.full((K,), len(even) / K), atol=1e-3, rtol=0)
    torch.testing.assert_close(even.sum(1), torch.ones(len(even)))


def test_sinkhorn_survives_far_logits_and_no_rows():
    far = torch.zeros(3, K)
    far[:, 0] = 1000.0  # all others underflow
    out = sinkhorn_knopp(far, 0.04)
    assert out.isfinite().all() and torch.equal(out.argmax(1), torch.zeros(3, dtype=torch.int64))
    assert sinkhorn_knopp(torch.zeros(0, K), 0.04).shape == (0, K)


def test_sinkhorn_leaves_out_rows_that_do_not_count():
    logits = torch.randn(2, 5, K, generator=torch.Generator().manual_seed(0))
    counted = torch.tensor([[True, False, True, True, False], [False, True, True, False, True]])
    out = sinkhorn_knopp(logits, 0.2, counted=counted)
    torch.testing.assert_close(out[counted], sinkhorn_knopp(logits[counted], 0.2))
    assert (out[~counted] == 0).all() and (sinkhorn_knopp(logits, 0.2, counted=torch.zeros_like(counted)) == 0).all()


def test_sinkhorn_head_and_wrong_balance():
    head = DistillationHead(K, teacher_temp=0.05, balance='sinkhorn')
    logits = torch.randn(2, 3, 1, K)
    torch.testing.assert_close(head.targets(logits, head.token_center), sinkhorn_knopp(logits, 0.05))
    with pytest.raises(ValueError, match="balance is 'none'"):
        DistillationHead(K, balance='none')


def test_batch_norm_in_the_neck_standardises_and_keeps_populations_apart():
    neck = MODELS.build(
        dict(
            type='ProjectionNeck',
            in_channels=32,
            hidden_channels=40,
            bottleneck_channels=16,
            num_prototypes=K,
            norm_cfg=dict(type='BN1d'),
        )
    )
    neck.init_weights()
    tokens = 1 + 1e-2 * torch.randn(64, 32)  # all but equal, as a fresh backbone's are
    z = neck.mlp(tokens)
    torch.testing.assert_close(z.mean(0), torch.zeros(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.std(0, correction=0), torch.ones(16), atol=0.3, rtol=0)
    assert neck(tokens.view(8, 8, 32)).shape == (8, 8, K)
    a, b = torch.randn(9, 32), 5 + torch.randn(30, 32)
    for got, part in zip(MODELS.get('ODIS')._project(neck, [a, b]), (a, b)):
        torch.testing.assert_close(got, neck(part))


# ------------------------------------------------------------------------------------------------------------------- ODIS
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
    model = make_odis(backbone=dict(drop_path_rate=0.9)).train()
    images = torch.randn(2, 3, 32, 32)
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


def test_a_model_without_its_schedule_says_so():
    model = make_odis()
    with pytest.raises(RuntimeError, match='SelfSupScheduleHook'):
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


def test_schedules():
    assert cosine(0.996, 1.0, 0, 10) == pytest.approx(0.996) and cosine(0.996, 1.0, 10, 10) == 1.0
    assert cosine(0.0, 1.0, 5, 10) == pytest.approx(0.5)
    assert (
        linear(0.04, 0.07, 15, 30) == pytest.approx(0.055)
        and linear(0.04, 0.07, 99, 30) == 0.07
        and linear(0.1, 0.1, 0, 0) == 0.1
    )
