"""GTSA: views, exact turns, the three losses against a slow reference, the teacher, batch 1."""

import copy
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import init_default_scope
from mmpretrain.registry import DATASETS, MODELS
from torch import nn

import odis_mm  # noqa: F401
from helpers import arrow, make_gtsa
from odis_mm import apis
from odis_mm.analysis import benchmark_gtsa
from odis_mm.analysis import textbook_gtsa as reference
from odis_mm.config import load_config
from odis_mm.datasets.transforms import collate_views, render_view
from odis_mm.models.heads import GTSAHead
from odis_mm.models.losses import correspondence_similarity, dense
from odis_mm.models.losses.dense import best_matches
from odis_mm.structures import View, ViewBatch, boxes_to_view, orient, stack_views, teacher_student_pairs, turn_squares
from odis_mm.utils.errors import ConfigError
from odis_mm.utils.schedules import cosine

MAP_LOSSES = ('loss_crop', 'loss_correspondence')


def draw_crops(rng, batch, num_views):
    """Crops int [B, V, 4] of images of other shapes: overlapping, contained, touching and apart."""
    crops = np.zeros((batch, num_views, 4), np.int64)
    for b in range(batch):
        width, height = rng.integers(40, 200, 2)
        for v in range(num_views):
            w, h = rng.integers(width // 3, width), rng.integers(height // 3, height)
            crops[b, v] = rng.integers(0, width - w + 1), rng.integers(0, height - h + 1), w, h
    crops[0, 2] = crops[0, 0] + [3, 2, -8, -7]  # contained
    x, y, w, h = crops[0, 0]
    crops[0, 3] = x + w, y, w, h  # touches its right edge
    if batch > 1:
        x, y, w, h = crops[1, 0]
        crops[1, 2], crops[1, 3] = (x + w + 5, y, w, h), (x + w, y + h, w, h)  # apart; touches in a point
    return crops


def make_batch(batch=3, num_local=3, seed=0, rot90=None):
    """Random pixels with the geometry of 2 global views of 40 px and ``num_local`` of 24 px."""
    rng, g = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    views = 2 + num_local
    return dict(
        inputs=[
            torch.randint(0, 256, (2 * batch, 3, 40, 40), generator=g, dtype=torch.uint8),
            torch.randint(0, 256, (num_local * batch, 3, 24, 24), generator=g, dtype=torch.uint8),
        ],
        data_samples=dict(
            crop=torch.from_numpy(draw_crops(rng, batch, views)).float(),
            view_size=torch.tensor([[40, 40]] * 2 + [[24, 24]] * num_local).expand(batch, -1, -1).contiguous(),
            flip=torch.zeros(batch, views, dtype=torch.bool),
            rot90=torch.from_numpy(rng.integers(0, 4, (batch, views))) if rot90 is None else rot90,
        ),
    )


def losses_of(model, data, iteration=0):
    model.set_progress(iteration, 100, 10)
    return model(**model.data_preprocessor(copy.deepcopy(data), True), mode='loss')


def total(losses):
    return sum(value for key, value in losses.items() if 'loss' in key)


# ---- one sign convention


@pytest.mark.parametrize('rot90, points_to', [(0, 'right'), (1, 'up'), (2, 'left'), (3, 'down')])
def test_a_positive_turn_is_counter_clockwise_on_a_picture(rot90, points_to):
    view = View((0, 0, 64, 64), (64, 64), False, rot90)
    turned = render_view(arrow(), view)[..., 0].astype(float)
    halves = dict(left=turned[:, :32], right=turned[:, 32:], up=turned[:32], down=turned[32:])
    assert max(halves, key=lambda name: halves[name].sum()) == points_to
    # where the head of the arrow is
    x1, y1, x2, y2 = boxes_to_view(np.array([40.0, 12.0, 60.0, 52.0]), view).astype(int)
    assert turned[y1:y2, x1:x2].sum() > 0.5 * turned.sum()


@pytest.mark.parametrize('rot90', range(4))
def test_turned_view_and_map_turned_back_agree(rot90):
    image = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    plain, turned = (render_view(image, View((10, 5, 60, 50), (32, 32), False, k)) for k in (0, rot90))
    maps = [torch.from_numpy(pixels).permute(2, 0, 1) for pixels in (plain, turned)]
    assert torch.equal(orient(maps[1], rot90=rot90, inverse=True), maps[0])
    back = turn_squares(maps[1].expand(2, 3, 3, 32, 32), torch.tensor([[-rot90] * 3, [-rot90 - 4] * 3]))
    assert torch.equal(back, maps[0].expand_as(back))
    assert torch.equal(turn_squares(maps[0], torch.tensor(rot90)), torch.rot90(maps[0], rot90, (1, 2)))


def test_a_box_turned_four_times_is_the_same_box():
    box, frame = np.array([3.0, 5.0, 20.0, 11.0]), (50, 30)  # w, h
    once, (w, h) = box, frame
    for _ in range(4):
        once = boxes_to_view(once, View((0, 0, w, h), (h, w), False, 1))
        w, h = h, w
    np.testing.assert_array_equal(once, box)


def test_pairs_hold_the_rectangles_of_the_slow_reference():
    crops, rng = draw_crops(np.random.default_rng(3), 4, 5), np.random.default_rng(4)
    rot90 = torch.from_numpy(rng.integers(0, 4, (4, 5)))
    sizes = torch.tensor([[40, 40]] * 2 + [[24, 24]] * 3).expand(4, -1, -1)
    groups = teacher_student_pairs(
        ViewBatch(torch.from_numpy(crops), sizes, torch.zeros(4, 5, dtype=torch.bool), rot90), [2, 3]
    )
    assert [pairs.turns.shape for pairs in groups] == [(2, 4), (6, 4)]
    seen = 0
    for start, pairs in zip((0, 2), groups):
        for p, (q, v) in enumerate(zip(pairs.teacher.tolist(), (pairs.student + start).tolist())):
            for b in range(4):
                shared = reference.intersection(crops[b, q], crops[b, v])
                assert bool(pairs.overlap[p, b]) == (shared is not None) and q != v
                assert pairs.turns[p, b] == rot90[b, v] - rot90[b, q]
                for i, box in ((q, pairs.teacher_box), (v, pairs.student_box)):
                    expected = (0, 0, 0, 0)
                    if shared is not None:
                        expected = reference.in_view(shared, crops[b, i], sizes[b, i].tolist(), int(rot90[b, i]))
                    np.testing.assert_allclose(box[p, b], expected, atol=1e-4)
                seen += shared is None
    assert 0 < seen < 20


# ---- losses, value and gradient
def slow_losses(model, data):
    processed = model.data_preprocessor(copy.deepcopy(data), True)
    return benchmark_gtsa.slow_losses(model, processed['inputs'], processed['data_samples'], heads_once=False)


def assert_equal_to_reference(model, data):
    fast, slow = losses_of(model, data), slow_losses(model, data)
    for key in (*MAP_LOSSES, 'loss_rotation'):
        assert fast[key].item() == pytest.approx(slow[key].item(), abs=1e-5), key
        parameters = [p for p in model.parameters() if p.requires_grad]
        ours, theirs = (
            torch.autograd.grad(losses[key], parameters, retain_graph=True, allow_unused=True)
            for losses in (fast, slow)
        )
        for a, b in zip(ours, theirs):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
        assert any(a is not None and a.abs().max() > 1e-4 for a in ours), f'{key} has no gradient to compare'


def test_losses_equal_the_slow_reference_for_all_sixteen_rotation_pairs():
    turns = torch.tensor(list(itertools.product(range(4), range(4))))  # of the two global views
    rng = np.random.default_rng(7)
    for start in range(0, 16, 4):
        rot90 = torch.cat((turns[start : start + 4], torch.from_numpy(rng.integers(0, 4, (4, 3)))), 1)
        assert_equal_to_reference(make_gtsa(), make_batch(batch=4, seed=start, rot90=rot90))


def test_matches_found_in_blocks_are_the_same():
    model, data = make_gtsa(), make_batch(batch=5)
    views = ViewBatch(*(data['data_samples'][key] for key in ('crop', 'view_size', 'flip', 'rot90')))
    teacher, student = torch.randn(2, 5, 25, 32), torch.randn(3, 5, 9, 32, requires_grad=True)
    pairs = teacher_student_pairs(views, [2, 3])[1]
    whole, blocks = (
        correspondence_similarity(teacher, student, pairs, 5, limit) for limit in (1 << 30, 2 * 2 * 25 * 3 * 9)
    )
    assert torch.equal(whole, blocks) and whole.shape == (6, 5)
    assert model.head.num_matches == (12, 5)


def test_the_similarities_stay_within_their_limit(monkeypatch):
    sizes = []
    original = dense.product
    monkeypatch.setattr(dense, 'product', lambda *a: sizes.append(original(*a).numel()) or original(*a))
    views = ViewBatch(
        torch.zeros(6, 5, 4),
        torch.full((6, 5, 2), 8),
        torch.zeros(6, 5, dtype=torch.bool),
        torch.zeros(6, 5, dtype=torch.int64),
    )
    limit = 4 * (3 * 9 * 2 * 25)
    correspondence_similarity(
        torch.randn(2, 6, 25, 4), torch.randn(3, 6, 9, 4), teacher_student_pairs(views, [2, 3])[1], 5, limit
    )
    assert sizes == [limit, limit // 2]


def test_of_equal_matches_the_first_is_taken():
    views = ViewBatch(
        torch.tensor([[[0.0, 0, 8, 8]] * 2]),
        torch.full((1, 2, 2), 8),
        torch.zeros(1, 2, dtype=torch.bool),
        torch.zeros(1, 2, dtype=torch.int64),
    )
    pairs = teacher_student_pairs(views, [2])[0]
    cells = F.one_hot(torch.tensor([1, 0, 1, 0]), 3).float().expand(2, 1, -1, -1)  # pairs of equal cells
    cosine = torch.einsum('vbnc,gbmc->bvngm', cells, cells)
    student_cell, teacher_cell = best_matches(cosine, pairs, keep=3)
    assert student_cell[0, 0].tolist() == [0, 1, 2] + [0, 1, 0] and teacher_cell[0, 0].tolist() == [0, 1, 0] + [0, 1, 2]


def test_pairs_without_common_area_do_not_count():
    model, data = make_gtsa(), make_batch(batch=1, num_local=2)
    crop = data['data_samples']['crop']
    # all of them touch or are apart
    crop[0] = torch.tensor([[0.0, 0, 50, 50], [50, 0, 50, 50], [0, 50, 50, 50], [100, 0, 9, 9]])
    losses = losses_of(model, data)
    assert all(losses[key].item() == 0 for key in MAP_LOSSES)
    total(losses).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad), (
        'and in the graph, as DDP wants it'
    )


# ---- an encoder that turns
class MeanColour(nn.Module):
    """Tokens of a per-patch mean colour behind a class token: turning the picture turns the map."""

    num_leading_tokens = 1

    def forward(self, images):
        cells = F.avg_pool2d(images, 8).flatten(2).transpose(1, 2)
        return (torch.cat((cells[:, :1], cells), 1),)

    def to_map(self, tokens, size):
        return tokens[:, 1:].unflatten(1, [side // 8 for side in size]).permute(0, 3, 1, 2)


def colour_loss(image, views, told=None):
    """L_crop and L_correspondence with mean colours as features, of an image uint8 [H, W, 3] and its views; ``told``:
    other turns."""
    model = make_gtsa()
    model.backbone = model.teacher['backbone'] = MeanColour()
    model.neck = model.teacher['neck'] = model.head.predictor = nn.Identity()
    model.head.rotation = None
    model.head.lambda_rotation = 0.0
    pixels = [render_view(image, view) for view in views]
    geometry = stack_views(
        views if told is None else [View(view.crop, view.size, False, k) for view, k in zip(views, told)]
    )
    inputs = [torch.from_numpy(np.stack(part)).permute(0, 3, 1, 2) for part in (pixels[:2], pixels[2:])]
    samples = dict(crop=geometry.crop, view_size=geometry.size, flip=geometry.flip, rot90=geometry.rot90)
    return losses_of(
        model, dict(inputs=inputs, data_samples={key: torch.from_numpy(value)[None] for key, value in samples.items()})
    )


def textured(height, width):
    rng = np.random.default_rng(0)
    return np.kron(rng.integers(0, 256, (height // 8, width // 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)


VIEWS = [
    View((8, 3, 60, 50), (40, 40)),
    View((20, 10, 50, 61), (40, 40)),
    View((15, 12, 33, 30), (24, 24)),
    View((30, 20, 25, 31), (24, 24)),
    View((9, 30, 41, 27), (24, 24)),
]


@pytest.mark.parametrize('turns', [(1, 0, 0, 0, 0), (0, 3, 1, 2, 0), (2, 1, 3, 0, 1), (3, 2, 2, 3, 1)])
def test_turning_views_with_their_bookkeeping_changes_nothing(turns):
    image = textured(80, 104)
    plain = colour_loss(image, VIEWS)
    turned = colour_loss(image, [View(view.crop, view.size, False, k) for view, k in zip(VIEWS, turns)])
    for key in MAP_LOSSES:
        torch.testing.assert_close(turned[key], plain[key], atol=1e-5, rtol=0)


def test_turned_pixels_under_wrong_bookkeeping_do_change_it():
    image, turns = textured(80, 104), (0, 3, 1, 2, 0)
    views = [View(view.crop, view.size, False, k) for view, k in zip(VIEWS, turns)]
    right, upright, clockwise = (
        colour_loss(image, views, told)['loss_crop'] for told in (turns, (0,) * 5, (0, 1, 3, 2, 0))
    )
    assert min(upright - right, clockwise - right) > 1e-2


@pytest.mark.parametrize('quarters', [1, 2, 3])
def test_turning_the_image_and_its_crops_changes_nothing(quarters):
    image = textured(80, 104)
    frame = View((0, 0, 104, 80), (80, 104), False, quarters)
    turned_views = []
    for view in VIEWS:
        x, y, w, h = view.crop
        x1, y1, x2, y2 = boxes_to_view(np.array([x, y, x + w, y + h], np.float64), frame).astype(int).tolist()
        turned_views.append(View((x1, y1, x2 - x1, y2 - y1), view.size))
    plain = colour_loss(image, VIEWS)
    turned = colour_loss(np.ascontiguousarray(np.rot90(image, quarters)), turned_views)
    # the resize rounds to whole grey levels, along rows before columns or the other way round
    torch.testing.assert_close(turned['loss_crop'], plain['loss_crop'], atol=1e-3, rtol=0)


def test_conv_neck_equals_its_formula():
    neck = MODELS.build(dict(type='ConvNeck', in_channels=6, hidden_channels=6, out_channels=5))
    x = torch.randn(2, 6, 4, 7)
    y = x
    for conv in neck.blocks:
        z = conv(y)
        z = (z - z.mean(1, keepdim=True)) / (z.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        y = y + F.gelu(z)
    torch.testing.assert_close(neck(x), F.conv2d(y, neck.project.weight, neck.project.bias))
    torch.testing.assert_close(neck(x.contiguous(memory_format=torch.channels_last)), neck(x))
    assert (
        not [p for p in neck.parameters() if p.ndim == 1 and p.shape[0] not in (5, 6)]
        and len(list(neck.parameters())) == 6
    )


def test_losses_are_switched_and_weighted_by_config():
    data = make_batch()
    full = losses_of(make_gtsa(), data)
    assert set(full) == {*MAP_LOSSES, 'loss_rotation', 'rotation_accuracy', 'teacher_spread'}
    for key in (*MAP_LOSSES, 'loss_rotation'):
        weight = key.replace('loss_', 'lambda_')
        assert key not in losses_of(make_gtsa(**{weight: 0.0}), data)
        default = 1.0 if weight == 'lambda_crop' else 0.5
        assert losses_of(make_gtsa(**{weight: 0.2}), data)[key].item() == pytest.approx(
            full[key].item() * 0.2 / default, rel=1e-5
        )


@pytest.mark.parametrize('alone', ['lambda_crop', 'lambda_correspondence', 'lambda_rotation'])
def test_each_loss_trains_alone_every_parameter_that_asks_for_it(alone):
    others = {key: 0.0 for key in ('lambda_crop', 'lambda_correspondence', 'lambda_rotation') if key != alone}
    model = make_gtsa(**others)
    total(losses_of(model, make_batch())).backward()
    for name, p in model.named_parameters():
        assert (p.grad is not None) == p.requires_grad, name


def test_gradients_reach_all_of_the_student_and_nothing_else():
    model = make_gtsa()
    total(losses_of(model, make_batch())).backward()
    for name, p in model.named_parameters():
        if name.startswith('teacher.'):
            assert not p.requires_grad and p.grad is None, name
        else:
            assert p.grad is not None and p.grad.abs().max() > 0, name


def test_correspondence_comes_after_the_warm_up():
    model = make_gtsa()
    model.head.correspondence_epoch = 2
    assert 'loss_correspondence' not in losses_of(model, make_batch(), iteration=19)  # 10 iterations per epoch
    assert 'loss_correspondence' in losses_of(model, make_batch(), iteration=20)


def test_correspondence_starts_as_in_the_release():
    """Its rule is ``10 < epoch``, the epoch a whole number counted from 0."""
    model, data = make_gtsa(), make_batch()
    model.head.correspondence_epoch = load_config('gtsa_vits_coco').model.head.correspondence_epoch
    for iteration in (99, 100, 109, 110, 119):  # 10 iterations per epoch
        assert ('loss_correspondence' in losses_of(model, data, iteration=iteration)) == (10 < iteration // 10)


@pytest.mark.parametrize(
    'options, told',
    [
        (dict(lambda_crop=0.0, lambda_correspondence=0.0, lambda_rotation=0.0), 'one of them above 0'),
        (dict(lambda_crop=-1.0), '0 or more'),
        (dict(lambda_crop=0.0, correspondence_epoch=3), 'set correspondence_epoch=0'),
    ],
)
def test_bad_weights_are_told(options, told):
    with pytest.raises(ValueError, match=told):
        GTSAHead(24, predictor=dict(type='ConvNeck', in_channels=32), **options)


def test_more_matches_than_cells_are_told():
    model = make_gtsa()
    model.head.num_matches = (26, 5)
    with pytest.raises(ValueError, match='26 matches of a map with 25 cells'):
        losses_of(model, make_batch())


def test_views_that_are_no_whole_patches_are_told():
    data = make_batch()
    data['inputs'][1] = data['inputs'][1][..., :-1, :-1]
    with pytest.raises(ValueError, match='no whole patches of model.backbone.patch_size'):
        losses_of(make_gtsa(), data)


def test_rotation_accuracy_counts_views():
    model, data = make_gtsa(), make_batch()
    with torch.no_grad():
        for p in model.head.rotation[-1].parameters():
            p.zero_()
        model.head.rotation[-1].bias[2] = 1.0
    share = (data['data_samples']['rot90'] == 2).float().mean().item()
    assert losses_of(model, data)['rotation_accuracy'].item() == pytest.approx(100 * share)
    inputs = model.data_preprocessor(data)['inputs'][0]
    assert model.predict_rotation(inputs).argmax(-1).tolist() == [2] * 6
    assert model.extract_feat(inputs).shape == (6, 24, 5, 5)


def test_spread_tells_a_collapsed_teacher():
    model, data = make_gtsa(), make_batch()
    assert 0.01 < losses_of(model, data)['teacher_spread'] < 1
    with torch.no_grad():
        model.teacher['neck'].project.weight.zero_()
        model.teacher['neck'].project.bias.fill_(1.0)
    assert losses_of(model, data)['teacher_spread'].item() == pytest.approx(0, abs=1e-5)


def test_batch_of_one():
    model = make_gtsa()
    losses = losses_of(model, make_batch(batch=1))
    total(losses).backward()
    assert all(torch.isfinite(value) for value in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)
    assert_equal_to_reference(make_gtsa(), make_batch(batch=1, seed=2))


def test_bf16_autocast_keeps_losses_in_float32_and_close():
    model, data = make_gtsa(), make_batch()
    exact = losses_of(model, data)
    with torch.autocast('cpu', torch.bfloat16):
        half = losses_of(model, data)
    for key in (*MAP_LOSSES, 'loss_rotation'):
        assert half[key].dtype == torch.float32
        assert half[key].item() == pytest.approx(exact[key].item(), rel=0.05, abs=0.01), key


@pytest.mark.parametrize('accumulate', [1, 3])
def test_teacher_is_what_an_update_before_its_forward_pass_gives(accumulate):
    """The literal rule: before the first forward pass after a step, theta_t <- m theta_t + (1-m) theta_s with this
    iteration's m."""
    model, total_iters = make_gtsa(), 9
    literal = copy.deepcopy(model.teacher)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    stepped = False
    for i in range(total_iters):
        model.set_progress(i, total_iters, 3)
        if stepped:
            m = cosine(0.5, 1.0, i, total_iters)
            with torch.no_grad():
                for (name, p), _ in zip(literal.named_parameters(), model.teacher.parameters()):
                    p.mul_(m).add_(model.get_parameter(name), alpha=1 - m)
        for (name, p), q in zip(literal.named_parameters(), model.teacher.named_parameters()):
            torch.testing.assert_close(q[1], p, msg=name)
        total(model(**model.data_preprocessor(make_batch(seed=i), True), mode='loss')).backward()
        stepped = (i + 1) % accumulate == 0
        if stepped:
            optimizer.step()
            optimizer.zero_grad()
            model.after_optimizer_step()
    for (name, p), q in zip(
        literal.named_parameters(), model.teacher.parameters()
    ):  # m is 1 at the end: nothing is ahead of it
        torch.testing.assert_close(q, p, msg=name)
    assert not torch.equal(next(literal['neck'].parameters()), next(make_gtsa().teacher['neck'].parameters()))


def steps(model, iterations, state=None):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    if state is not None:
        model.load_state_dict(state['model'])
        optimizer.load_state_dict(state['optimizer'])
    for i in iterations:
        model.set_progress(i, 6, 2)
        total(model(**model.data_preprocessor(make_batch(seed=i), True), mode='loss')).backward()
        optimizer.step()
        optimizer.zero_grad()
        model.after_optimizer_step()
    return copy.deepcopy(dict(model=model.state_dict(), optimizer=optimizer.state_dict()))


def test_a_resumed_run_is_the_same_run():
    whole = steps(make_gtsa(), range(6))
    parts = steps(make_gtsa(), range(3, 6), steps(make_gtsa(), range(3)))
    for key, value in whole['model'].items():
        assert torch.equal(parts['model'][key], value), key


def test_the_recipe_for_ade20k_differs_in_the_images_alone():
    coco, ade20k = (apis.load_config(f'gtsa_vits_{data}').to_dict() for data in ('coco', 'ade20k'))
    for key in ('data_root', 'data_prefix'):
        assert coco['train_dataloader']['dataset'].pop(key) != ade20k['train_dataloader']['dataset'].pop(key)
    assert coco == ade20k


def test_the_recipe_trains_on_real_images(shared_data):
    init_default_scope('mmpretrain')
    cfg = apis.load_config(
        'gtsa_vits_coco',
        {
            'train_dataloader.dataset.data_root': str(shared_data / 'coco'),
            'train_dataloader.dataset.data_prefix': 'train2017/',
            'train_dataloader.dataset.pipeline.1.views.0.size': 64,
            'train_dataloader.dataset.pipeline.1.views.1.size': 32,
            'model.head.crop_cells': (3, 2),
            'model.head.num_matches': (8, 2),
            'model.head.correspondence_epoch': 0,
        },
    )
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    batch = collate_views([dataset[0], dataset[1]])
    assert [tuple(x.shape) for x in batch['inputs']] == [(4, 3, 64, 64), (16, 3, 32, 32)]
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).train()
    losses = losses_of(model, batch)
    total(losses).backward()
    assert all(torch.isfinite(value) for value in losses.values()) and set(losses) >= {*MAP_LOSSES, 'loss_rotation'}
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_entropy_of_the_cells_over_the_images():
    model, data, maps = make_gtsa(lambda_entropy=0.5), make_batch(), []
    model.neck.register_forward_hook(lambda module, args, out: maps.append(out))
    losses = losses_of(model, data)
    batch = len(data['data_samples']['flip'])
    z = F.normalize(maps[0].double(), dim=1).unflatten(0, (-1, batch))  # [G, B, C, h, w]
    channels, rates = z.shape[2], []
    for view in z:
        for cell in view.flatten(2).unbind(-1):  # [B, C]
            moment = torch.eye(batch, dtype=torch.double) + channels / 0.05 * cell @ cell.T / batch
            rates.append(torch.logdet(moment) / 2 / min(batch, channels))
    expected = -0.5 * torch.stack(rates).mean()
    torch.testing.assert_close(losses['loss_entropy'].double(), expected, atol=1e-5, rtol=0)
    assert 'loss_entropy' not in losses_of(make_gtsa(), data)


def test_a_predictor_of_another_width_than_the_neck_is_told():
    predictor = dict(type='ConvNeck', in_channels=20, out_channels=32)
    with pytest.raises(ConfigError, match='model.neck.out_channels=32, but model.head.predictor.in_channels=20'):
        MODELS.build(
            dict(
                type='GTSA',
                backbone=dict(type='ObjectViT', arch='deit-tiny', img_size=32, patch_size=8),
                neck=dict(type='ConvNeck', in_channels=192, out_channels=32),
                head=dict(type='GTSAHead', in_channels=192, predictor=predictor),
            )
        )
