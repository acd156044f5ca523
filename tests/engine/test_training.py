"""The hooks in a real run, and two ranks against one."""

import copy
import os
from types import SimpleNamespace

import pytest
import torch
import torch.multiprocessing as mp
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper

import odis_mm  # noqa: F401
from helpers import K, make_batch, make_odis, odis_runner, poisoned
from odis_mm.engine.hooks import NonFiniteLossHook
from odis_mm.engine.optim import SafeOptimWrapper


def test_a_run_moves_the_teacher_and_exports_it(tmp_path):
    runner = odis_runner(tmp_path)
    start = copy.deepcopy(runner.model.state_dict())
    moves, seen = [], []
    original = runner.model.update_teacher
    runner.model.update_teacher = lambda: (moves.append(runner.model.momentum), original())[1]

    before = runner.model.set_progress
    runner.model.set_progress = lambda *a: (
        seen.append(runner.optim_wrapper.optimizer.param_groups[0]['weight_decay']),
        before(*a),
    )[1]
    prototypes = []
    step_end = runner.model.head.step
    runner.model.head.step = lambda: (prototypes.append(runner.model.neck.prototypes.weight_v.clone()), step_end())[1]
    runner.train()
    assert len(moves) == 8 and moves[0] == 0.5 and moves == sorted(moves) and moves[-1] < 1
    assert all(torch.equal(p, start['neck.prototypes.weight_v']) for p in prototypes[:4]), 'no gradient in epoch 0'
    assert not torch.equal(prototypes[4], prototypes[3])
    groups = runner.optim_wrapper.optimizer.param_groups
    assert len(groups) == 2 and groups[1]['weight_decay'] == 0 and 0.3 < groups[0]['weight_decay'] < 0.4
    end = runner.model.state_dict()
    assert not torch.equal(end['teacher.backbone.pos_embed'], start['teacher.backbone.pos_embed'])
    assert end['head.token_center.value'].abs().max() > 0
    # the first checkpoint was pruned, and its export with it
    assert sorted(f for f in os.listdir(tmp_path) if f.endswith('.pth')) == ['epoch_2.pth', 'epoch_2_backbone.pth']
    exported = torch.load(tmp_path / 'epoch_2_backbone.pth', weights_only=True)['state_dict']
    assert all(torch.equal(v, end[f'teacher.{k}']) for k, v in exported.items())
    assert set(exported) == {k.removeprefix('teacher.') for k in end if k.startswith('teacher.backbone.')}


def test_accumulation_moves_teacher_and_centers_once_per_optimizer_step(tmp_path):
    runner = odis_runner(tmp_path, epochs=1, accumulate=2)
    counts = dict(teacher=0, center=0)

    def count(name, function):
        def counted():
            counts[name] += 1
            return function()

        return counted

    runner.model.update_teacher = count('teacher', runner.model.update_teacher)
    runner.model.head.step = count('center', runner.model.head.step)
    runner.train()
    assert counts == dict(teacher=2, center=2)


def test_resume_continues(tmp_path):
    full = odis_runner(tmp_path / 'full', epochs=2)
    full.train()
    first = odis_runner(tmp_path / 'parts', epochs=2)

    class Stop(Exception):
        pass

    def stop(*_):
        if first.epoch == 1:
            raise Stop

    original = first.model.set_progress
    first.model.set_progress = lambda *a: (stop(), original(*a))[1]
    with pytest.raises(Stop):
        first.train()
    second = odis_runner(tmp_path / 'parts', epochs=2, resume=True)
    with torch.no_grad():
        second.model.mask_token.add_(5)  # whatever it starts from must not matter
    second.train()
    for key, value in full.model.state_dict().items():
        torch.testing.assert_close(second.model.state_dict()[key], value, msg=key)


def train_steps(batches, wrap=lambda m: m, **kwargs):
    """Three optimizer steps of SGD on given views; returns losses and the state afterwards."""
    model = make_odis(**kwargs)
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
            data = poisoned(data)
        model.set_progress(runner.iter, 3, 3)
        hook.before_train_iter(runner, runner.iter, data)
        hook.after_train_iter(runner, runner.iter, data, wrapped.train_step(data, optim))
    return dict(told=told, skipped_state={k: v.clone() for k, v in model.state_dict().items()})


def rank_main(rank, world, folder, balance):
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=world)
    batches = [shard(make_batch(batch=4, seed=s), rank, world) for s in range(3)]
    losses, state = train_steps(
        batches, lambda m: MMDistributedDataParallel(m, broadcast_buffers=False), head=dict(balance=balance)
    )
    torch.save(dict(losses=losses, state=state, **skip_together(rank, world, folder)), f'{folder}/rank{rank}.pt')
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize('balance', ['center', 'sinkhorn'])
def test_two_ranks_equal_one_with_twice_the_batch(tmp_path, balance):
    mp.spawn(rank_main, args=(2, str(tmp_path), balance), nprocs=2)
    losses, state = train_steps([make_batch(batch=4, seed=s) for s in range(3)], head=dict(balance=balance))
    ranks = [torch.load(tmp_path / f'rank{r}.pt', weights_only=True) for r in range(2)]
    torch.testing.assert_close(
        torch.tensor([r['losses'] for r in ranks]).mean(0), torch.tensor(losses), atol=1e-5, rtol=1e-5
    )
    for rank in ranks:
        for key, value in state.items():
            torch.testing.assert_close(rank['state'][key], value, atol=1e-5, rtol=1e-5, msg=lambda m: f'{key}: {m}')
    assert state['head.token_center.value'].abs().max() > 1e-3 and len(state['head.token_center.value']) == K

    for rank in ranks:
        (text,) = rank['told']
        assert 'not finite at iteration 2 (rank 1), images unknown' in text and 'nonfinite_iter_2_rank1.pth' in text
        for key, value in rank['skipped_state'].items():
            torch.testing.assert_close(value, ranks[0]['skipped_state'][key], msg=key)
            assert value.isfinite().all(), key
    assert [f for f in os.listdir(tmp_path) if f.startswith('nonfinite')] == ['nonfinite_iter_2_rank1.pth']
