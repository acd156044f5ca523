"""The optimizer wrapper: clipping by tensor, the norm in the log, and steps that are not taken."""

import math

import pytest
import torch
from mmengine.logging import MessageHub
from torch import nn

from ddp_helpers import run_ranks
from odis_mm.engine.deferred import DeferredHistory
from odis_mm.engine.optim import AutocastOptimWrapper, SafeOptimWrapper, clip_each_grad_
from odis_mm.utils.distributed import whole
from odis_mm.utils.errors import ConfigError


def network() -> nn.Module:
    """Odd sizes, so that two ranks hold parts of different lengths and one holds none of a bias."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3), nn.Linear(3, 1))


def set_gradients(model: nn.Module, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(1)
    for factor, parameter in zip((0.1, 5.0, 1.0, 20.0, 0.0, 3.0), model.parameters()):
        parameter.grad = scale * factor * torch.randn(parameter.shape, generator=generator)


def test_each_gradient_is_clipped_as_by_torch_for_it_alone():
    ours, theirs = network(), network()
    set_gradients(ours), set_gradients(theirs)
    before = [p.grad.clone() for p in ours.parameters()]
    total = clip_each_grad_(ours.parameters(), 1.5)
    for parameter in theirs.parameters():
        torch.nn.utils.clip_grad_norm_([parameter], 1.5)
    changed = [not torch.equal(p.grad, old) for p, old in zip(ours.parameters(), before)]
    assert changed == [False, True, True, True, False, True], 'some above the limit, some below'
    for mine, reference in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(mine.grad, reference.grad, rtol=0, atol=0)
    assert math.isclose(float(total), math.sqrt(sum(float(old.square().sum()) for old in before)), rel_tol=1e-6)


def sharded(rank: int, world: int) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    reference, model = network(), network()
    set_gradients(reference)
    fully_shard(model, mesh=init_device_mesh('cpu', (world,)))
    model(torch.ones(2, 5)).sum().backward()  # gives every parameter a gradient in parts
    for mine, other in zip(model.parameters(), reference.parameters()):
        rows = torch.chunk(other.grad, world)
        mine.grad.to_local().copy_(rows[rank] if rank < len(rows) else other.grad[:0])
    total = clip_each_grad_(model.parameters(), 1.5)
    expected = clip_each_grad_(reference.parameters(), 1.5)
    torch.testing.assert_close(total, expected)
    for mine, other in zip(model.parameters(), reference.parameters()):
        torch.testing.assert_close(whole(mine.grad), other.grad)


def test_parts_of_gradients_are_clipped_by_the_norm_of_all_parts(tmp_path):
    run_ranks(sharded, tmp_path)


@pytest.mark.parametrize('wrapper', [SafeOptimWrapper, AutocastOptimWrapper])
def test_the_wrapper_clips_and_logs_the_norm_before_clipping(wrapper):
    model = network()
    optim = wrapper(torch.optim.SGD(model.parameters(), lr=0.0), clip_grad=dict(max_norm=0.5, per_tensor=True))
    hub = MessageHub.get_instance(f'clipping_{wrapper.__name__}')
    optim.message_hub = hub
    for _ in range(3):
        set_gradients(model)
        optim.step()
    assert all(float(p.grad.norm()) <= 0.5 + 1e-5 for p in model.parameters())
    assert isinstance(hub.log_scalars['train/grad_norm'], DeferredHistory)
    set_gradients(model)
    expected = math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters()))
    assert math.isclose(hub.get_scalar('train/grad_norm').current(), expected, rel_tol=1e-6)
    for wrong in (dict(per_tensor=True), dict(per_tensor=True, max_norm=1.0, norm_type=1)):
        with pytest.raises(ConfigError, match='goes with max_norm alone'):
            wrapper(torch.optim.SGD(model.parameters(), lr=0.0), clip_grad=wrong)


def test_the_norm_of_all_gradients_stays_the_default():
    ours, theirs = network(), network()
    clip = dict(max_norm=1.0)
    optim = SafeOptimWrapper(torch.optim.SGD(ours.parameters(), lr=1.0), clip_grad=clip)
    assert clip == dict(max_norm=1.0), 'the config is left as it was'
    set_gradients(ours), set_gradients(theirs)
    optim.step()
    torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
    for mine, reference in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(mine.grad, reference.grad, rtol=0, atol=0)


def test_a_step_is_skipped_only_when_asked_and_only_when_not_finite():
    for asked in (False, True):
        weight = nn.Parameter(torch.tensor([1.0]))
        optim = SafeOptimWrapper(torch.optim.SGD([weight], lr=1.0))
        optim.skip_nonfinite = asked
        optim.update_params(weight.sum() * math.nan)
        assert optim.step_skipped is asked and bool(weight.detach().isnan()) is not asked
    optim.update_params(weight.sum())
    assert optim.step_skipped is False and weight.tolist() == [0.0]
    optim = SafeOptimWrapper(torch.optim.SGD([weight], lr=1.0), accumulative_counts=2)
    optim.skip_nonfinite = True
    optim.update_params(weight.sum() * math.nan)
    assert optim.step_skipped is None
    optim.update_params(weight.sum())
    assert optim.step_skipped is True, 'the whole step goes'


@pytest.mark.parametrize('per_tensor', [True, False])
@pytest.mark.parametrize('norm', [0, -1.0])
def test_a_largest_norm_that_leaves_nothing_is_refused(norm, per_tensor):
    optimizer = torch.optim.SGD(network().parameters(), lr=1.0)
    with pytest.raises(ConfigError, match='would leave nothing of any gradient: set optim_wrapper.clip_grad=None'):
        SafeOptimWrapper(optimizer, clip_grad=dict(max_norm=norm, per_tensor=per_tensor))


def test_a_bare_number_for_clipping_is_told():
    optimizer = torch.optim.SGD(network().parameters(), lr=1.0)
    with pytest.raises(ConfigError, match=r'optim_wrapper.clip_grad is dict\(max_norm=...\) or None, got 3'):
        SafeOptimWrapper(optimizer, clip_grad=3)
