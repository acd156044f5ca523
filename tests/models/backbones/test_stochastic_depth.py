"""Dropped residual branches, computed and multiplied by zero or not computed at all: the same step."""

import copy

import pytest
import torch
from mmcv.cnn.bricks import DropPath

from helpers import ODIS_CONFIG, losses_and_gradients_of, make_batch, make_odis, noisy_vit, random_images, random_masks
from odis_mm.analysis.cost import count_flops, count_step, forms_of_gpus
from odis_mm.models.backbones import object_vit
from odis_mm.models.backbones.stochastic_depth import Kept, add, draw_path, select, take

SHAPES = ((3, 2), (4, 1))  # (images, tokens) of two resolutions
ROWS = 10


def computing_all(drop, x, shapes, skip):
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
        branch = (take(x, path, dtype) @ weight.to(dtype)).sin()
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
    assert abs(kept - 0.7) < 0.02 and all(path.scale == 1 / 0.7 for path in paths)
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
