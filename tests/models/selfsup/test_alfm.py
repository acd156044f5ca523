"""ALFM: entropy against float64, the cells against loops in image coordinates, both losses against a slow reference."""

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmpretrain.registry import MODELS

import odis_mm  # noqa: F401
from odis_mm.engine.hooks import ViewInspectionHook
from odis_mm.models.heads import ALFMHead
from odis_mm.models.losses import aligned_cells, coding_length, effective_rank, second_moment
from odis_mm.structures import View, ViewBatch, pair_intersections, points_from_view, stack_views
from odis_mm.transfer import load_backbone, save_backbone

ARCH = dict(embed_dims=32, num_layers=2, num_heads=4, feedforward_channels=64)
K, S, EPS2 = 12, 3, 0.05
HEIGHT, WIDTH = 32, 48  # of a view, in patches of 8
# crops of images of several shapes: partial overlap, one inside the other, none at all
CROPS = torch.tensor(
    [
        [[10, 4, 60, 50], [30, 20, 80, 41]],
        [[0, 0, 100, 90], [20, 30, 33, 25]],
        [[0, 0, 20, 30], [25, 5, 30, 40]],
        [[5, 60, 70, 30], [0, 0, 90, 77]],
    ],
    dtype=torch.float32,
)
FLIPS = torch.tensor([[True, False], [True, True], [False, True], [False, False]])


def make_alfm(**kwargs):
    cfg = dict(
        type='ALFM',
        backbone=dict(type='VisionTransformer', arch=ARCH, img_size=32, patch_size=8, out_type='featmap'),
        neck=dict(type='GlobalLocalNeck', in_channels=32, hidden_channels=40, bottleneck_channels=16, num_prototypes=K),
        head=dict(type='ALFMHead', num_prototypes=K, num_cells=S),
    )
    for key, value in kwargs.items():
        cfg[key] = {**cfg[key], **value} if isinstance(value, dict) and key in cfg else value
    torch.manual_seed(1)
    model = MODELS.build(cfg)
    model.init_weights()
    with torch.no_grad():  # a fresh projector maps all images to nearly one vector
        for parameter in model.neck.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.teacher['neck'].load_state_dict(model.neck.state_dict())
    return model


def make_batch(batch=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    return dict(
        inputs=[torch.randint(0, 256, (2 * batch, 3, HEIGHT, WIDTH), generator=g, dtype=torch.uint8)],
        data_samples=dict(
            crop=CROPS[:batch].clone(),
            flip=FLIPS[:batch].clone(),
            rot90=torch.zeros(batch, 2, dtype=torch.int64),
            view_size=torch.tensor([HEIGHT, WIDTH]).expand(batch, 2, 2).clone(),
        ),
    )


def losses_of(model, data, iteration=0):
    model.set_progress(iteration, 100, 10)
    return model(**model.data_preprocessor(copy.deepcopy(data), True), mode='loss')


def total(losses):
    return sum(value for key, value in losses.items() if 'loss' in key)


def unit(*shape, seed=0, dtype=torch.float32):
    return F.normalize(
        torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1
    ).to(dtype)


def entropy(z):
    """h(Z)/d', through the library."""
    moment = second_moment(z)
    return coding_length(moment, z.shape[-1], EPS2) / min(z.shape[-2:])


# ---- entropy
def naive(z, side):
    """The definition in float64, with eigenvalues instead of a factorisation."""
    z = z.double()
    n, d = z.shape
    gram = z.T @ z if side == 'd' else z @ z.T
    return (1 + d / (n * EPS2) * torch.linalg.eigvalsh(gram)).log().sum() / 2 / min(n, d)


@pytest.mark.parametrize('n, d', [(7, 20), (20, 20), (50, 20), (300, 256), (1, 20), (2, 1)])
def test_entropy_equals_float64_on_both_sides(n, d):
    z = unit(n, d)
    for side in 'nd':
        assert entropy(z).item() == pytest.approx(naive(z, side).item(), abs=1e-5)
    assert second_moment(z).shape[-1] == min(n, d), 'the smaller side'


@pytest.mark.parametrize('n, d', [(3, 5), (6, 4), (1, 3)])
def test_entropy_passes_gradcheck(n, d):
    z = unit(n, d, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(entropy, (z,))


@pytest.mark.parametrize('n, d', [(64, 16), (8, 32)])
def test_entropy_falls_for_collapsed_and_is_largest_for_isotropic_embeddings(n, d):
    basis = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(1)))[0]
    isotropic = basis.repeat(math.ceil(n / d), 1)[:n]
    wide, cone = unit(n, d), F.normalize(unit(1, d, seed=2) + 0.1 * unit(n, d), dim=-1)
    collapsed = unit(1, d).expand(n, d)
    values = [entropy(z).item() for z in (collapsed, cone, wide, isotropic)]
    assert values == sorted(values) and values[0] < 0.5 * values[-1] and len(set(values)) == 4
    m = min(n, d)  # an isotropic Gram side is (n / m) I
    assert values[-1] == pytest.approx(0.5 * math.log(1 + d / m / EPS2), rel=1e-5)


@pytest.mark.parametrize(
    'z',
    [unit(1, 8), unit(1, 8).expand(6, 8), unit(3, 8).repeat(4, 1), unit(1, 8).expand(40, 8)],
    ids=['one image', 'one vector, n < d', 'duplicated images', 'one vector, n > d'],
)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_entropy_survives_rank_deficiency_and_autocast(z, dtype):
    z = z.to(dtype).clone().requires_grad_()
    with torch.autocast('cpu', torch.bfloat16):
        value = entropy(z)
    value.backward()
    assert value.dtype == torch.float64 and torch.isfinite(z.grad).all()
    assert value.item() == pytest.approx(naive(z.detach(), 'd').item(), abs=1e-5)


def test_nan_embeddings_give_a_nan_and_no_exception():
    z = unit(4, 8)
    z[2, 3] = float('nan')
    assert entropy(z).isnan()


def test_effective_rank():
    assert effective_rank(second_moment(torch.eye(6))).item() == pytest.approx(6)
    assert effective_rank(second_moment(unit(1, 6).expand(9, 6))).item() == pytest.approx(1)
    assert effective_rank(second_moment(torch.eye(6)[:2].repeat(5, 1))).item() == pytest.approx(2)


def bilinear(image, x, y):
    """A map [C, H, W] at continuous cell centers (x, y), the edge continued."""
    height, width = image.shape[1:]
    x, y = min(max(x, 0), width - 1), min(max(y, 0), height - 1)
    x0, y0 = min(int(x), width - 2), min(int(y), height - 2)
    dx, dy = x - x0, y - y0
    return (1 - dy) * ((1 - dx) * image[:, y0, x0] + dx * image[:, y0, x0 + 1]) + dy * (
        (1 - dx) * image[:, y0 + 1, x0] + dx * image[:, y0 + 1, x0 + 1]
    )


def slow_cells(image, crop, other, flip, cells=S):
    """[S*S, C] of one view: points laid out over the shared rectangle in IMAGE coordinates and followed into the view,
    in each cell as many as it has cells of the map; None if the crops share nothing."""
    (x, y, w, h), (ox, oy, ow, oh) = crop.tolist(), other.tolist()
    x1, y1, x2, y2 = max(x, ox), max(y, oy), min(x + w, ox + ow), min(y + h, oy + oh)
    if x2 <= x1 or y2 <= y1:
        return None
    rows, cols = image.shape[1:]
    down, across = math.ceil((y2 - y1) / h * rows / cells), math.ceil((x2 - x1) / w * cols / cells)
    out = []
    for i in range(cells):
        for j in range(cells):
            points = []
            for a in range(down):
                for b in range(across):
                    px = x1 + (j + (b + 0.5) / across) / cells * (x2 - x1)
                    py = y1 + (i + (a + 0.5) / down) / cells * (y2 - y1)
                    u, v = (px - x) / w, (py - y) / h
                    points.append(bilinear(image, (1 - u if flip else u) * cols - 0.5, v * rows - 0.5))
            out.append(sum(points) / len(points))
    return torch.stack(out)


def test_cells_of_two_views_show_the_same_places():
    """Maps that hold image coordinates: whatever crop, flip and turn, cell (i, j) of either view holds the same
    ones."""
    views = stack_views([View((10, 4, 60, 50), (64, 64), True, 1), View((30, 20, 80, 41), (64, 64), False, 2)])
    first, _, _ = pair_intersections(views)  # x 30..70, y 20..54 in the image
    centers = np.stack(np.meshgrid(*[(np.arange(16) + 0.5) * 4] * 2), -1)
    maps = (
        torch.from_numpy(np.stack([points_from_view(centers, views.at(v)) for v in range(2)]))
        .permute(0, 3, 1, 2)
        .float()
    )
    boxes = torch.from_numpy(np.stack([first[0, 1], first[1, 0]])).float()
    cells = aligned_cells(maps, boxes, (64, 64), torch.from_numpy(views.flip), torch.from_numpy(views.rot90), 6).view(
        2, 6, 6, 2
    )
    x, y = np.meshgrid(30 + (np.arange(6) + 0.5) / 6 * 40, 20 + (np.arange(6) + 0.5) / 6 * 34)
    wanted = torch.from_numpy(np.stack([x, y], -1)).float().expand(2, -1, -1, -1)
    inner = (slice(None), slice(1, -1), slice(1, -1))  # towards a map's edge bilinear sampling continues the last value
    torch.testing.assert_close(cells[inner], wanted[inner], atol=1e-3, rtol=0)


# ---- losses
def slow_losses(model, data):
    """Both losses from the equations, image by image, cell by cell."""
    images = model.data_preprocessor(copy.deepcopy(data), True)['inputs'][0]
    samples, batch, t, tau_c = data['data_samples'], len(images) // 2, model.head.teacher_temp, model.head.context_temp
    student, teacher = model.backbone(images)[-1], model.teacher['backbone'](images)[-1].detach()
    neck, target_neck, center = model.neck, model.teacher['neck'], model.head.center.value
    terms, seen = [], 0
    for b in range(batch):
        crops, flips = samples['crop'][b], samples['flip'][b]
        for q, v in ((0, 1), (1, 0)):
            teacher_cells = slow_cells(teacher[q * batch + b], crops[q], crops[v], flips[q])
            student_cells = slow_cells(student[v * batch + b], crops[v], crops[q], flips[v])
            if teacher_cells is None:
                continue
            seen += 1
            cells = [F.normalize(target_neck.mlp(c), dim=0) for c in teacher_cells]
            for i, cell in enumerate(cells):
                weights = torch.stack([cell @ other / tau_c for other in cells]).softmax(0)
                context = sum(w * other for w, other in zip(weights, cells))
                label = ((target_neck.prototypes(context) - center) / t).softmax(0).detach()
                guess = (
                    neck.prototypes(F.normalize(neck.mlp(student_cells[i]), dim=0)) / model.head.student_temp
                ).log_softmax(0)
                terms.append(-(label * guess).sum())
    z, target = (
        F.normalize(n.global_mlp(m.mean((2, 3))), dim=-1).unflatten(0, (2, batch))
        for n, m in ((neck, student), (target_neck, teacher))
    )
    similarity = ((z[0] * target[1].detach()).sum(-1).mean() + (z[1] * target[0].detach()).sum(-1).mean()) / 2
    gmsr = -similarity - 0.5 * (naive(z[0], 'd') + naive(z[1], 'd'))
    return dict(loss_gmsr=gmsr, loss_cdlp=sum(terms) / len(terms), overlap=seen / 2 / batch)


def test_losses_equal_a_slow_reference():
    """Flips, partial overlap, none, non-square views of images of other shapes; an epoch within the temperature's
    schedule."""
    model, data = make_alfm(), make_batch()
    model.head.center.value.normal_(std=0.1)
    with torch.no_grad():
        for parameter in model.teacher.parameters():  # a teacher of its own
            parameter.add_(torch.randn_like(parameter) * 0.02)
    got = losses_of(model, data, iteration=35)
    assert model.head.teacher_temp == pytest.approx(0.04 + 0.03 * 3.5 / 30)
    wanted = slow_losses(model, data)
    assert got['overlap'].item() == wanted['overlap'] == 0.75
    parameters = [p for p in model.parameters() if p.requires_grad]
    for key in ('loss_gmsr', 'loss_cdlp'):
        assert got[key].item() == pytest.approx(wanted[key].item(), abs=1e-5), key
        fast, slow = (
            torch.autograd.grad(x[key], parameters, retain_graph=True, allow_unused=True) for x in (got, wanted)
        )
        assert [g is None for g in fast] == [g is None for g in slow] and any(g is not None for g in fast)
        for a, b in zip(fast, slow):
            if a is not None:
                torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4, msg=key)


def test_tokens_and_maps_are_the_same_backbone():
    stock, ours, data = make_alfm(), make_alfm(backbone=dict(type='ObjectViT', out_type='raw')), make_batch()
    for module in ('backbone', 'teacher'):
        getattr(ours, module).load_state_dict(getattr(stock, module).state_dict())
    ours.neck.load_state_dict(stock.neck.state_dict())
    for key, value in losses_of(stock, data).items():
        torch.testing.assert_close(losses_of(ours, data)[key], value, msg=key)


@pytest.mark.parametrize('balance', ['center', 'sinkhorn'])
def test_views_without_overlap_contribute_nothing(balance):
    model, data = make_alfm(head=dict(balance=balance)), make_batch()
    whole = losses_of(model, data)
    assert whole['overlap'].item() == 0.75
    observed = model.head.center.pending.clone()
    model.head.center.pending.zero_()
    kept = [0, 1, 3]  # the crops of image 2 are apart
    without = dict(
        inputs=[data['inputs'][0].unflatten(0, (2, -1))[:, kept].flatten(0, 1)],
        data_samples={key: value[kept] for key, value in data['data_samples'].items()},
    )
    same = losses_of(model, without)
    assert same['overlap'].item() == 1
    for key in ('loss_cdlp', 'teacher_entropy'):
        torch.testing.assert_close(same[key], whole[key])
    torch.testing.assert_close(model.head.center.pending, observed)
    assert observed[-1] == 2 * 3 * S * S
    data['data_samples']['crop'][:, 1] += 1000
    model.head.center.pending.zero_()
    none = losses_of(model, data)
    assert none['overlap'].item() == 0 and none['loss_cdlp'].item() == 0 and none['teacher_entropy'].item() == 0
    none['loss_cdlp'].backward()
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in model.parameters())
    assert model.neck.prototypes.weight_v.grad is not None, 'in the graph: DDP needs no search for unused parameters'
    before = model.head.center.value.clone()
    model.head.step()
    assert torch.equal(model.head.center.value, before)


def test_gradients_reach_all_of_the_student_and_nothing_else():
    model = make_alfm()
    losses = losses_of(model, make_batch())
    total(losses).backward()
    for name, p in model.named_parameters():
        if name.startswith('teacher.'):
            assert not p.requires_grad and p.grad is None, name
        else:
            assert p.grad is not None and p.grad.abs().max() > 0, name
    assert all(not value.requires_grad for key, value in losses.items() if 'loss' not in key)
    assert {'similarity', 'effective_rank', 'teacher_entropy', 'overlap'} <= set(losses) and 1 <= losses[
        'effective_rank'
    ] <= 4


@pytest.mark.parametrize(
    'off, on, idle',
    [('lambda_gmsr', 'loss_cdlp', ('neck.global_mlp',)), ('lambda_cdlp', 'loss_gmsr', ('neck.mlp', 'neck.prototypes'))],
)
def test_each_term_alone(off, on, idle):
    both, model, data = losses_of(make_alfm(), make_batch()), make_alfm(**{off: 0}), make_batch()
    losses = losses_of(model, data)
    assert [key for key in losses if 'loss' in key] == [on]
    torch.testing.assert_close(losses[on], both[on])
    losses[on].backward()
    for name, p in model.named_parameters():
        if p.requires_grad:  # so that DDP needs no search for unused parameters
            assert p.grad is not None, name
        else:
            assert name.startswith(('teacher.', *idle)), name
    with pytest.raises(ValueError, match='both 0'):
        make_alfm(lambda_gmsr=0, lambda_cdlp=0)


def test_weights_scale_the_terms():
    one, other = (
        losses_of(make_alfm(), make_batch()),
        losses_of(make_alfm(lambda_gmsr=0.5, lambda_cdlp=2.0), make_batch()),
    )
    torch.testing.assert_close(other['loss_gmsr'], 0.5 * one['loss_gmsr'])
    torch.testing.assert_close(other['loss_cdlp'], 2 * one['loss_cdlp'])


def test_batch_of_one_and_duplicated_images():
    model = make_alfm()
    losses = losses_of(model, make_batch(batch=1))
    total(losses).backward()
    assert losses['effective_rank'].item() == pytest.approx(1)
    data = make_batch()
    data['inputs'][0][:] = data['inputs'][0][:1]
    total(losses_of(model, data)).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_bf16_autocast_keeps_losses_in_float32_and_close():
    model, data = make_alfm(), make_batch()
    exact = losses_of(model, data)
    with torch.autocast('cpu', torch.bfloat16):
        half = losses_of(model, data)
        total(half).backward()
    for key in ('loss_gmsr', 'loss_cdlp'):
        assert half[key].dtype == torch.float32
        assert half[key].item() == pytest.approx(exact[key].item(), rel=0.05), key
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize('balance', ['center', 'sinkhorn'])
def test_autocast_changes_nothing_after_the_logits(balance):
    cells, g = unit(2, 5, S * S, 8), torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 5, S * S, 40, generator=g) * 0.3 for _ in range(2))
    overlap = torch.tensor([True, True, False, True, True])
    seen = []
    for enabled in (False, True):
        head = ALFMHead(num_prototypes=40, num_cells=S, balance=balance)
        with torch.autocast('cpu', torch.bfloat16, enabled=enabled):
            seen.append(
                dict(head.cdlp(student, teacher, overlap), context=head.enrich(cells), center=head.center.pending)
            )
    for key, value in seen[0].items():
        torch.testing.assert_close(seen[1][key], value, atol=1e-6, rtol=1e-6, msg=key)


def test_wrong_views_and_backbones_are_named():
    data = make_batch()
    for key, value in data['data_samples'].items():
        data['data_samples'][key] = value.repeat_interleave(2, 1)
    with pytest.raises(ValueError, match='makes 4 of 1 size'):
        losses_of(make_alfm(), data)
    with pytest.raises(ValueError, match="out_type='featmap'"):
        losses_of(make_alfm(backbone=dict(out_type='raw')), make_batch())
    data = make_batch()
    data['inputs'][0] = data['inputs'][0][..., :42]
    with pytest.raises(ValueError, match='42 pixels are no whole patches of model.backbone.patch_size'):
        losses_of(make_alfm(), data)
    with pytest.raises(ValueError, match='multiple of the backbone'):
        losses_of(make_resnet(), data)
    data = make_batch()
    data['inputs'][0] = data['inputs'][0][..., :42, :42]  # a square one too
    with pytest.raises(ValueError, match='no whole patches'):
        losses_of(make_alfm(), data)
    with pytest.raises(ValueError, match='model.head.eps2 must be positive'):
        make_alfm(head=dict(eps2=0))


# ---- other backbones


def make_resnet(depth=18, **options):
    torch.manual_seed(1)
    model = MODELS.build(
        dict(
            type='ALFM',
            backbone=dict(type='ResNet', depth=depth, **options),
            neck=dict(
                type='GlobalLocalNeck',
                in_channels=512 if depth == 18 else 2048,
                hidden_channels=16,
                bottleneck_channels=8,
                num_prototypes=K,
            ),
            head=dict(type='ALFMHead', num_prototypes=K, num_cells=S),
        )
    )
    model.init_weights()
    return model


def test_a_resnet_trains_and_its_teacher_keeps_its_own_statistics(tmp_path):
    model, data = make_resnet().train(), make_batch(batch=2)
    data['inputs'][0] = data['inputs'][0].repeat_interleave(2, 2).repeat_interleave(2, 3)
    data['data_samples']['view_size'] *= 2
    losses = losses_of(model, data)
    total(losses).backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if not name.startswith('teacher.'))
    mean = model.teacher['backbone'].bn1.running_mean
    assert mean.abs().max() > 0 and torch.isfinite(total(losses))
    path = tmp_path / 'epoch_1_backbone.pth'
    save_backbone(path, model.teacher_backbone_state())
    fresh = MODELS.build(dict(type='ResNet', depth=18))
    report = load_backbone(fresh, path)
    assert not report.expected_missing and not report.unexpected and torch.equal(fresh.bn1.running_mean, mean)


def test_a_resnet_50_goes_into_mmdets_key_for_key(tmp_path):
    mmdet_resnet = pytest.importorskip('mmdet.models').ResNet
    path = tmp_path / 'epoch_1_backbone.pth'
    model = make_resnet(50)
    save_backbone(path, model.teacher_backbone_state())
    detector = mmdet_resnet(
        50, frozen_stages=1, norm_eval=True, init_cfg=dict(type='VerifiedPretrained', checkpoint=str(path))
    )
    detector.init_weights()
    own, ours = detector.state_dict(), model.teacher['backbone'].state_dict()
    assert set(own) == set(ours) and all(torch.equal(own[key], ours[key]) for key in own)
    image = torch.randn(1, 3, 64, 64)
    detector.eval(), model.teacher['backbone'].eval()
    torch.testing.assert_close(detector(image)[-1], model.extract_feat(image))


@pytest.mark.parametrize('options, free', [(dict(), True), (dict(norm_eval=True), False)])
def test_the_teachers_batch_norms_stand_where_the_students_do(options, free):
    model = make_resnet(18, **options).train()
    for norms in (model.backbone, model.teacher['backbone']):
        assert {m.training for m in norms.modules() if isinstance(m, torch.nn.BatchNorm2d)} == {free}


def test_gmsr_of_what_both_views_show():
    data = make_batch()
    crop = data['data_samples']['crop']
    crop[0, 1] = crop[0, 0] + torch.tensor([1000.0, 0, 0, 0])  # image 0: nothing in common
    model = make_alfm(lambda_cdlp=0.0, embed_shared=True)
    seen = []
    model.neck.embed_images = lambda maps: seen.append(maps) or type(model.neck).embed_images(model.neck, maps)
    assert losses_of(model, data)['loss_gmsr'].isfinite()
    inputs = model.data_preprocessor(data, True)['inputs'][0]
    with torch.no_grad():
        maps = model.backbone(inputs)[-1]
    views = ViewBatch(*(data['data_samples'][key] for key in ('crop', 'view_size', 'flip', 'rot90')))
    first = pair_intersections(views)[0]
    boxes = torch.cat((first[:, 0, 1], first[:, 1, 0])).float()
    turns = views.flip.T.flatten(), views.rot90.T.flatten()
    cells = aligned_cells(maps, boxes, inputs.shape[-2:], *turns, model.head.num_cells)
    batch = len(views.flip)
    for index in (1, batch + 1):
        torch.testing.assert_close(seen[0][index, :, 0, 0], cells[index].mean(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(seen[0][0, :, 0, 0], maps[0].mean((1, 2)), atol=1e-5, rtol=0)


def test_the_picture_after_a_run_waits_for_no_other_rank(tmp_path):
    """The first rank draws it alone, and batch norms that train, which ``sync_bn`` syncs, wait for all ranks."""
    model, training, hook = make_resnet().train(), [], ViewInspectionHook()
    norm = model.teacher['backbone'].bn1
    norm.register_forward_hook(lambda module, *_: training.append(module.training))
    before = norm.running_mean.clone()
    hook.samples = [dict(pixels=[np.zeros((64, 64, 3), np.uint8)])] * 2
    visualizer = SimpleNamespace(add_image=lambda *args, **kwargs: None)
    hook.after_train(SimpleNamespace(model=model, work_dir=str(tmp_path), iter=1, visualizer=visualizer))
    assert training == [False] and norm.training and torch.equal(norm.running_mean, before)
