"""Two ranks beside one process where the whole runs of test_distributed.py do not go: Sinkhorn, a step skipped
together, entropy, batch norms that wait for each other."""

import copy
import os
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper

import odis_mm  # noqa: F401
from ddp_helpers import run_ranks
from helpers import losses_of, make_batch, make_odis, with_nan
from odis_mm.config import explain_build_error
from odis_mm.datasets.transforms import mask_positions
from odis_mm.engine.hooks import NonFiniteLossHook
from odis_mm.engine.optim import SafeOptimWrapper
from odis_mm.models.losses.coding_length import coding_length, second_moment

pytestmark = pytest.mark.slow

CHANNELS = (3, 16)


def train_steps(batches, wrap=lambda m: m):
    """Return the losses of optimizer steps of SGD on given views, and the state afterwards."""
    model = make_odis(head=dict(balance='sinkhorn'))
    wrapped = wrap(model)
    optim = OptimWrapper(
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5), clip_grad=dict(max_norm=0.5)
    )
    optim.optimizer.register_step_post_hook(lambda *_: model.after_optimizer_step())
    losses = []
    for i, data in enumerate(batches):
        model.set_progress(i, 10, 5)
        out = wrapped.train_step(copy.deepcopy(data), optim)
        losses.append([float(out[k]) for k in ('loss_obj', 'loss_patch')])
    return losses, {k: v.clone() for k, v in model.state_dict().items()}


def shard(data, rank, world):
    """What one of the ranks sees of a global batch."""
    batch = len(data['data_samples']['object_visible'])

    def part(x):
        return x.unflatten(0, (-1, batch))[:, rank::world].flatten(0, 1)

    samples = data['data_samples']
    return dict(
        inputs=[part(x) for x in data['inputs']],
        data_samples=dict(
            object_mask=[part(x) for x in samples['object_mask']],
            object_visible=samples['object_visible'][rank::world],
            mim_mask=part(samples['mim_mask']),
            **mask_positions(part(samples['mim_mask'])),
        ),
    )


def skip_together(rank, world, folder):
    """Step 2 of three has a NaN, on the last rank alone; what the ranks say and have afterwards."""
    model = make_odis()
    wrapped = MMDistributedDataParallel(model, broadcast_buffers=False)
    optim, hook, told = SafeOptimWrapper(torch.optim.SGD(model.parameters(), lr=0.5)), NonFiniteLossHook(), []
    optim.optimizer.register_step_post_hook(lambda *_: model.after_optimizer_step())
    runner = SimpleNamespace(
        model=wrapped,
        optim_wrapper=optim,
        iter=0,
        max_iters=3,
        rank=rank,
        world_size=world,
        work_dir=folder,
        train_dataloader=[0] * 3,
        logger=SimpleNamespace(warning=told.append),
    )
    hook.before_train(runner)
    for runner.iter in range(3):
        data = shard(make_batch(batch=4, seed=runner.iter), rank, world)
        if runner.iter == 1 and rank == world - 1:
            data = with_nan(data)
        model.set_progress(runner.iter, 3, 3)
        hook.before_train_iter(runner, runner.iter, data)
        hook.after_train_iter(runner, runner.iter, data, wrapped.train_step(data, optim))
    return dict(told=told, skipped_state={k: v.clone() for k, v in model.state_dict().items()})


def entropy(z, world=1):
    """Return the value of the global batch, and its gradient in this rank's part as DDP's mean over ranks gives it."""
    z = z.clone().requires_grad_()
    value = coding_length(second_moment(z), z.shape[-1], 0.5)
    value.backward()
    return value.detach(), z.grad / world


def embeddings(channels):
    """Embeddings of 8 images, fewer or more than they have channels."""
    return F.normalize(torch.randn(8, channels, generator=torch.Generator().manual_seed(channels)), dim=-1)


def norms_run(rank, world, masked):
    """Return the rows of each call of a synced batch norm, in a step in which so many ranks, the last ones, have masked
    patches."""
    rows = []

    def forward(self, x):  # torch's own, in which the ranks meet, runs on GPUs alone
        rows.append(len(x))
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)

    torch.nn.SyncBatchNorm.forward = forward
    model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(make_odis(neck=dict(norm_cfg=dict(type='BN1d'))))
    data = shard(make_batch(batch=4), rank, world)
    if rank < world - masked:
        data['data_samples']['mim_mask'][:] = False
    data['data_samples'].update(mask_positions(data['data_samples']['mim_mask']))
    losses_of(model, data)
    return rows


def synced_without_gpus():
    try:
        MMDistributedDataParallel(torch.nn.SyncBatchNorm(4), broadcast_buffers=False)
    except ValueError as error:
        return error


def rank_main(rank, world, folder):
    batches = [shard(make_batch(batch=4, seed=s), rank, world) for s in range(3)]
    losses, state = train_steps(batches, lambda m: MMDistributedDataParallel(m, broadcast_buffers=False))
    share = slice(rank * 8 // world, (rank + 1) * 8 // world)
    return dict(
        losses=losses,
        state=state,
        entropy={channels: entropy(embeddings(channels)[share], world) for channels in CHANNELS},
        **skip_together(rank, world, folder),
        synced=synced_without_gpus(),
        norms={masked: norms_run(rank, world, masked) for masked in range(world + 1)},
    )


@pytest.fixture(scope='module')
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp('ranks')
    return folder, run_ranks(rank_main, folder, str(folder))


def test_sinkhorn_over_two_ranks_is_that_of_the_whole_batch(ranks):
    losses, state = train_steps([make_batch(batch=4, seed=s) for s in range(3)])
    torch.testing.assert_close(
        torch.tensor([rank['losses'] for rank in ranks[1]]).mean(0), torch.tensor(losses), atol=1e-5, rtol=1e-5
    )
    for rank in ranks[1]:
        for key, value in state.items():
            torch.testing.assert_close(rank['state'][key], value, atol=1e-5, rtol=1e-5, msg=lambda m: f'{key}: {m}')


def test_a_non_finite_step_is_skipped_on_all_ranks_and_told_once(ranks):
    folder, ranks = ranks
    for rank in ranks:
        (text,) = rank['told']
        assert 'not finite at iteration 2 (rank 1), images unknown' in text and 'nonfinite_iter_2_rank1.pth' in text
        for key, value in rank['skipped_state'].items():
            torch.testing.assert_close(value, ranks[0]['skipped_state'][key], msg=key)
            assert value.isfinite().all(), key
    assert [f for f in os.listdir(folder) if f.startswith('nonfinite')] == ['nonfinite_iter_2_rank1.pth']


@pytest.mark.parametrize('channels', CHANNELS)
def test_entropy_and_its_gradient_are_those_of_all_ranks(ranks, channels):
    """The ranks exchange rows or the moment of columns, whichever is smaller."""
    value, gradient = entropy(embeddings(channels))
    for rank, part in zip(ranks[1], gradient.chunk(2)):
        torch.testing.assert_close(rank['entropy'][channels], (value, part), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize('masked', [0, 1, 2])
def test_synced_norms_run_as_often_on_each_rank(ranks, masked):
    """They wait for each other: a rank without masked patches must not leave a call out that another one makes."""
    first, second = (rank['norms'][masked] for rank in ranks[1])
    assert len(first) == len(second)
    assert len(first) == (6 if masked == 0 else 12)  # teacher and student, three norms, patches apart if there are any
    assert all(a + b > 0 for a, b in zip(first, second))


def test_synced_norms_without_gpus_are_refused_by_their_key(ranks):
    error = ranks[1][0]['synced']
    cfg = Config(dict(model=dict(neck=dict(norm_cfg=dict(type='SyncBN')))))
    assert "model.neck.norm_cfg.type='SyncBN' needs a GPU for each rank" in explain_build_error(error, cfg)
    assert explain_build_error(error, Config(dict(sync_bn='torch'))).endswith('on CPUs set sync_bn=None')
