"""Dropped residual branches, computed and multiplied by zero or not computed at all: the same step."""

import contextlib
import copy

import pytest
import torch
from mmcv.cnn.bricks import DropPath

from helpers import ODIS_CONFIG, losses_and_gradients_of, make_batch, make_odis, noisy_vit, random_images, random_masks
from odis_mm.analysis.cost import count_flops, count_step, forms_of_gpus
from odis_mm.models.backbones import object_vit
from odis_mm.models.backbones.stochastic_depth import Kept, Subset, add, draw_path, draw_subset, select, take

SHAPES = ((3, 2), (4, 1))  # (images, tokens) of two resolutions
ROWS = 10


def computing_all(drop, x, shapes, skip, *_):
    return draw_path(drop, x, shapes, False)


@pytest.fixture
def unwritten_is_nan():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def draw(flags, monkeypatch, skip=True, p=0.25):
    """The path of images of which ``flags`` says whether they are kept."""
    monkeypatch.setattr(
        torch, 'rand', lambda shape, **kwargs: torch.tensor([0.9 if flag else 0.1 for flag in flags]).view(shape)
    )
    path = draw_path(DropPath(p).train(), torch.zeros(ROWS, 5), SHAPES, skip)
    monkeypatch.undo()
    return path


@pytest.mark.parametrize('flags', ['1101011', '1000001', '0001111', '1110000', '1111111', '0100000'])
@pytest.mark.parametrize('dtype, tolerance', [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_rows_taken_and_added_are_those_multiplied(flags, dtype, tolerance, monkeypatch, unwritten_is_nan):
    flags = [flag == '1' for flag in flags]
    kept, scale = (draw(flags, monkeypatch, skip) for skip in (True, False))
    assert isinstance(kept, Kept) and scale.shape == (ROWS, 1)
    assert kept.shapes == ((sum(flags[:3]), 2), (sum(flags[3:]), 1))
    torch.manual_seed(0)
    x, weight = torch.randn(ROWS, 5, requires_grad=True), torch.randn(5, 5, requires_grad=True)
    factor, found = torch.randn(ROWS, 5), []
    for path in (kept, scale):
        branch = (take(x, path).to(dtype) @ weight.to(dtype)).sin()
        assert len(branch) == (ROWS if path is scale else sum(b * t for b, t in kept.shapes))
        out = add(x, branch, path)
        found.append([out, *torch.autograd.grad((out * factor).sum(), (x, weight))])
        assert out.dtype == torch.float32
    torch.testing.assert_close(*found, atol=tolerance, rtol=tolerance)


def test_masks_are_those_of_the_kept_images(monkeypatch):
    masks = (torch.arange(3)[:, None], None)
    path = draw([True, False, True, False, True, True, True], monkeypatch)
    assert select(masks, path)[0].flatten().tolist() == [0, 2] and select(masks, path)[1] is None
    assert path.images[1].tolist() == [1, 2, 3]
    assert select(masks, None) == masks and draw([True] * 7, monkeypatch).images == (None, None)


def test_a_batch_without_any_kept_image_still_gives_every_parameter_a_gradient(monkeypatch):
    path = draw([False] * 7, monkeypatch)
    assert torch.equal(path, torch.zeros(ROWS, 1))
    model = noisy_vit(drop_path_rate=0.999)
    model(random_images(1))[-1].sum().backward()
    assert all(parameter.grad is not None for layer in model.layers for parameter in layer.parameters())


def test_draws_are_as_frequent_as_asked_for_and_scaled_to_the_same_mean():
    torch.manual_seed(0)
    paths = [draw_path(DropPath(0.3).train(), torch.zeros(1, 1), ((40, 1),), True) for _ in range(200)]
    kept = sum(path.shapes[0][0] for path in paths) / (200 * 40)
    assert abs(kept - 0.7) < 0.02 and all({f for _, f in path.pieces} <= {0, 1 / 0.7} for path in paths)
    assert draw_path(DropPath(0.3).eval(), torch.zeros(1, 1), SHAPES, True) is None
    assert draw_path(None, torch.zeros(1, 1), SHAPES, True) is None


def test_counted_steps_drop_as_often_as_expected():
    """Half the branches dropped on a CPU: their products are missing, and no number was drawn."""
    model = make_odis()
    data = model.data_preprocessor(make_batch(batch=4), True)
    costs = {}
    for rate in (0.0, 0.5):
        cfg = copy.deepcopy(ODIS_CONFIG)
        cfg['backbone'].update(drop_path_rate=rate, layer_cfgs=dict(drop_path_rate=rate))
        costs[rate] = [count_step(cfg, data).flops for _ in range(2)]
    assert costs[0.5][0] == costs[0.5][1] < 0.8 * costs[0.0][0]


@pytest.mark.parametrize(
    'packed, options',
    [
        (False, dict()),
        (True, dict()),
        (False, dict(with_cp=True)),
        (False, dict(num_object_tokens=2, cls_beside_object=True, layer_scale_init_value=0.5)),
    ],
)
def test_leaving_out_dropped_branches_leaves_losses_and_gradients(packed, options, monkeypatch):
    model, found, skipped = make_odis(packed=packed), [], []
    model.backbone = noisy_vit(drop_path_rate=0.5, **options)
    model.teacher['backbone'] = noisy_vit(**options).requires_grad_(False)

    def watched(drop, x, shapes, skip):
        path = draw_path(drop, x, shapes, skip)
        skipped.append(isinstance(path, Kept) and len(path.pieces) > 1)
        return path

    for draws in (watched, computing_all):
        monkeypatch.setattr(object_vit, 'draw_path', draws)
        found.append(losses_and_gradients_of(model.train()))
    assert sum(skipped) >= 2
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)


def test_half_precision_leaves_out_the_same(monkeypatch):
    model, found = noisy_vit(drop_path_rate=0.6), []
    for draws in (draw_path, computing_all):
        monkeypatch.setattr(object_vit, 'draw_path', draws)
        torch.manual_seed(3)
        with torch.autocast('cpu', torch.bfloat16):
            found.append(model(random_images(8), random_masks(8))[-1])
    torch.testing.assert_close(*found, atol=0.05, rtol=0.05)


def test_what_is_dropped_costs_nothing():
    model = noisy_vit(drop_path_rate=0.5)

    def work():
        torch.manual_seed(0)
        model(random_images(16), random_masks(16))[-1].sum().backward()

    with_drops = count_flops(work)
    model.eval()
    assert with_drops < 0.85 * count_flops(work)


@pytest.mark.parametrize('where', ['gpu', 'compiled', 'sharded', 'rows'])
def test_where_it_does_not_pay_all_is_computed(where, monkeypatch):
    model, paths = noisy_vit(drop_path_rate=0.5), []

    def block(layer, x, sequences, drawn=(None, None), *args):
        paths.append(drawn)
        return original(layer, x, sequences, drawn, *args)

    original = object_vit.run_block
    if where in ('gpu', 'rows'):
        monkeypatch.setattr(object_vit, 'run_block', block)
        model.block = block
    else:
        model.block = model.sharded_block = block
    if where == 'gpu':
        with forms_of_gpus(model):
            model(random_images(8))
    else:
        model(random_images(8), patches=torch.tensor([3]) if where == 'rows' else None)
    last = paths[-1:] if where == 'rows' else paths
    assert last and not any(isinstance(path, Kept) for pair in last for path in pair)
    assert any(isinstance(path, torch.Tensor) for pair in last for path in pair)


# -------------------------------------------------------------------------------------------- a fixed number of images
@pytest.mark.parametrize('rate, counts', [(0.25, (2, 3)), (0.5, (2, 2)), (0.9, (1, 1)), (0.05, (3, 4))])
def test_subsets_are_of_a_fixed_size_and_one_result_in_all_forms(rate, counts):
    drop, found = DropPath(rate).train(), []
    torch.manual_seed(0)
    x, weight, factor = torch.randn(ROWS, 5, requires_grad=True), torch.randn(5, 5), torch.randn(ROWS, 5)
    for skip, rows, kind in ((True, False, Kept), (False, False, Subset), (False, True, torch.Tensor)):
        torch.manual_seed(1)
        path = draw_subset(drop, x, SHAPES, skip, rows)
        if counts == (3, 4):
            assert path is None
            continue
        assert isinstance(path, kind)
        if not rows:
            assert [n for n, _ in path.shapes] == list(counts)
        out = add(x, (take(x, path) @ weight).sin(), path)
        found.append([out, torch.autograd.grad((out * factor).sum(), x)[0]])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=1e-6, rtol=1e-6)


def test_subsets_have_the_expectation_of_plain_stochastic_depth():
    x, branch = torch.zeros(ROWS, 1), torch.arange(1.0, ROWS + 1)[:, None]
    torch.manual_seed(0)
    means = []
    for draw_one in (draw_path, draw_subset):
        drawn = [draw_one(DropPath(0.4).train(), x, SHAPES, False) for _ in range(3000)]
        means.append(sum(add(x, take(branch, path), path) for path in drawn) / 3000)
    torch.testing.assert_close(means[1], branch, rtol=0.06, atol=0)
    torch.testing.assert_close(means[1], means[0], rtol=0.08, atol=0)


VARIANTS = [
    (False, dict()),
    (True, dict()),
    (False, dict(with_cp=True)),
    (False, dict(num_object_tokens=2, cls_beside_object=True, layer_scale_init_value=0.5)),
]


def subset_model(packed, options, rate=0.5):
    model = make_odis(packed=packed)
    model.backbone = noisy_vit(drop_path_rate=rate, drop_path_subset=True, **options)
    model.teacher['backbone'] = noisy_vit(**options).requires_grad_(False)
    return model.train()


@pytest.mark.parametrize('packed, options', VARIANTS)
@pytest.mark.parametrize('form', ['cpu', 'gpu', 'compiled'])
def test_subsets_leave_losses_and_gradients_as_multiplying_would(packed, options, form, monkeypatch):
    model, found, kinds = subset_model(packed, options), [], []
    if form == 'compiled':
        torch._dynamo.reset()
        model.backbone.compile_blocks(backend='eager')

    def watched(*args):
        kinds.append(type(draw_subset(*args)))
        torch.manual_seed(len(kinds))
        return draw_subset(*args)

    def all_rows(drop, x, shapes, skip, rows):
        kinds.append(None)
        torch.manual_seed(len(kinds))
        return draw_subset(drop, x, shapes, False, True)

    for draws in (watched, all_rows):
        kinds.clear()
        monkeypatch.setattr(object_vit, 'draw_subset', draws)
        with forms_of_gpus(model) if form == 'gpu' else contextlib.nullcontext():
            found.append(losses_and_gradients_of(model))
        if draws is watched:
            expected = {'cpu': Kept, 'gpu': Subset, 'compiled': Subset}[form]
            assert kinds.count(expected) >= 2 and not {Kept, Subset} - {expected} & set(kinds)
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)


def test_subsets_follow_the_seed_and_no_drop_is_no_drop():
    images, masks = random_images(8), random_masks(8)
    vit, found = noisy_vit(drop_path_rate=0.5, drop_path_subset=True), []
    with forms_of_gpus(vit):
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            found.append(vit(images, masks)[-1])
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    kept = noisy_vit(drop_path_rate=0.01, drop_path_subset=True)  # 8 images: none is dropped
    torch.testing.assert_close(kept(images, masks)[-1], noisy_vit()(images, masks)[-1], atol=0, rtol=0)
    torch.testing.assert_close(vit.eval()(images, masks)[-1], noisy_vit()(images, masks)[-1], atol=0, rtol=0)


def test_on_gpus_too_a_subset_costs_its_share_and_no_wait(monkeypatch):
    vit, waits = noisy_vit(drop_path_rate=0.5, layer_cfgs=dict(drop_path_rate=0.5), drop_path_subset=True), []
    for name in ('item', '__bool__', '__int__', 'tolist', 'nonzero', 'cpu'):
        monkeypatch.setattr(torch.Tensor, name, lambda self, *args, name=name: waits.append(name))
    x, grid = vit.embed(random_images(16))
    x = x.detach().requires_grad_()

    def blocks():
        sequences = vit.sequences([(x, grid)], [None])
        tokens = x.flatten(0, 1)
        for number, layer in enumerate(vit.layers):
            tokens = vit.run_layer(number, layer, tokens, sequences, None)
        tokens.sum().backward()

    with forms_of_gpus(vit):
        half = count_flops(blocks)
        assert not waits
        monkeypatch.undo()
        vit.eval()
        assert half <= 0.51 * count_flops(blocks)
