"""The hooks in a real run, and two ranks against one."""

import copy
import logging
import math
import os
import os.path as osp
import re
from types import SimpleNamespace

import pytest
import torch
import torch.multiprocessing as mp
from mmengine.hooks import Hook
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from test_models import ARCH, K, make_batch, make_odis

import odis_mm  # noqa: F401
from odis_mm.cli.replay import replay_main as main
from odis_mm.engine.hooks import NonFiniteLossHook
from odis_mm.engine.loops import random_state, set_random_state
from odis_mm.engine.optim import SelfSupOptimWrapperConstructor
from odis_mm.engine.replay import replay

CONFIG = dict(  # of make_odis
    type='ODIS',
    backbone=dict(type='ObjectViT', arch=ARCH, img_size=32, patch_size=8),
    neck=dict(type='ProjectionNeck', in_channels=32, hidden_channels=40, bottleneck_channels=16, num_prototypes=K),
    head=dict(type='DistillationHead', num_prototypes=K),
)


class Views(torch.utils.data.Dataset):
    """Collated-batch content per index, so that a plain loader of batch size 1 feeds the model; NaN in a pixel of some."""

    def __init__(self, nan_at=()):
        self.nan_at = nan_at

    def __len__(self):
        return 4

    def __getitem__(self, index):
        data = make_batch(batch=2, seed=index)
        data['data_samples']['img_id'] = torch.tensor([7, 8])
        return poisoned(data) if index in self.nan_at else data

    def paths_of(self, ids):
        return [f'img/{i}.jpg' for i in ids]


def poisoned(data):
    data['inputs'][0] = data['inputs'][0].float()
    data['inputs'][0][0, 0, 0, 0] = float('nan')
    return data


def run(
    tmp_path,
    nan_at=(),
    epochs=2,
    accumulate=1,
    lr=0.01,
    optimizer='SGD',
    hooks=(),
    nonfinite=None,
    model=None,
    **kwargs,
):
    init_default_scope('mmpretrain')
    model = model or make_odis(momentum=dict(start=0.5, end=1.0))
    loader = torch.utils.data.DataLoader(Views(nan_at), batch_size=1, collate_fn=lambda items: items[0])
    runner = Runner(
        model,
        str(tmp_path),
        train_dataloader=loader,
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(
            type='OptimWrapper',
            optimizer=dict(type=optimizer, lr=lr, weight_decay=0.04),
            accumulative_counts=accumulate,
            constructor='SelfSupOptimWrapperConstructor',
        ),
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=1),
            logger=dict(type='LoggerHook', interval=1),
        ),
        custom_hooks=[
            dict(type='NonFiniteLossHook', **(nonfinite or {})),
            dict(type='ExportTeacherHook'),
            dict(type='SelfSupScheduleHook', weight_decay_end=0.4, freeze_prototypes_epochs=1),
            *hooks,
        ],
        experiment_name=f'{osp.basename(tmp_path)}_{epochs}_{accumulate}',
        default_scope='mmpretrain',
        **kwargs,
    )
    return runner


def test_a_run_moves_the_teacher_and_exports_it(tmp_path):
    runner = run(tmp_path)
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
    runner = run(tmp_path, epochs=1, accumulate=2)
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
    full = run(tmp_path / 'full', epochs=2)
    full.train()
    first = run(tmp_path / 'parts', epochs=2)

    class Stop(Exception):
        pass

    def stop(*_):
        if first.epoch == 1:
            raise Stop

    original = first.model.set_progress
    first.model.set_progress = lambda *a: (stop(), original(*a))[1]
    with pytest.raises(Stop):
        first.train()
    second = run(tmp_path / 'parts', epochs=2, resume=True)
    with torch.no_grad():
        second.model.mask_token.add_(5)  # whatever it starts from must not matter
    second.train()
    for key, value in full.model.state_dict().items():
        torch.testing.assert_close(second.model.state_dict()[key], value, msg=key)


class States(Hook):
    """What a step must not touch, before the first iteration and after each."""

    def __init__(self):
        self.seen = []

    def note(self, runner):
        optimizer = runner.optim_wrapper.optimizer.state_dict()['state']
        self.seen.append(
            {
                **runner.model.state_dict(),
                'pending': runner.model.head.token_center.pending,
                **{f'optimizer.{i}.{k}': v for i, entry in optimizer.items() for k, v in entry.items()},
            }
        )
        self.seen[-1] = {key: value.clone() for key, value in self.seen[-1].items()}

    def before_train(self, runner):
        self.note(runner)

    def after_train_iter(self, runner, *args, **kwargs):
        self.note(runner)


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize('accumulate, skipped, taken', [(1, (1, 5), (0, 2, 3, 4, 6, 7)), (2, (0, 1, 4, 5), (3, 7))])
def test_a_non_finite_step_is_skipped_as_a_whole(tmp_path, accumulate, skipped, taken):
    states = States()
    model = make_odis(
        momentum=dict(start=0.5, end=1.0), neck=dict(norm_cfg=dict(type='BN1d'))
    )  # has statistics that a forward pass feeds
    runner = run(tmp_path, nan_at=(1,), accumulate=accumulate, optimizer='AdamW', hooks=[states], model=model)
    told = []
    runner.logger.addHandler(type('Ears', (logging.Handler,), dict(emit=lambda self, record: told.append(record)))())
    runner.train()
    seen = states.seen
    for i in skipped:
        # of two accumulated iterations, the first feeds the batch norms, which the second puts back
        assert same(seen[i + 1], seen[i]) if accumulate == 1 else i % 2 == 0 or same(seen[i + 1], seen[i - 1]), i
    for i in taken:
        assert not torch.equal(seen[i + 1]['teacher.backbone.pos_embed'], seen[i]['teacher.backbone.pos_embed']), i
        assert not torch.equal(seen[i + 1]['head.token_center.value'], seen[i]['head.token_center.value']), i
    assert all(value.isfinite().all() for value in seen[-1].values())
    told = [
        record.getMessage()
        for record in told
        if record.levelno == logging.WARNING and 'not finite' in record.getMessage()
    ]
    assert len(told) == 2
    assert re.match(
        r'loss_obj, teacher_entropy are not finite at iteration 2, images img/7.jpg, img/8.jpg; the batch is saved: python -m '
        r'odis-mm replay CONFIG .*nonfinite_iter_2.pth. The step is skipped \(1 in a row; 3 end',
        told[0],
    ), told
    assert 'step' not in vars(runner.optim_wrapper), 'the wrapper has its own methods again'


def test_too_many_in_a_row_end_the_run_and_can_be_replayed(tmp_path, capsys):
    runner = run(tmp_path, nan_at=(1, 2, 3), nonfinite=dict(keep=2))
    with pytest.raises(
        FloatingPointError, match='loss_obj.* at iteration 4, .* 3 steps in a row .* last good checkpoint: none'
    ):
        runner.train()
    files = sorted(f for f in os.listdir(tmp_path) if f.endswith('.pth'))
    assert files == ['nonfinite_iter_2.pth', 'nonfinite_iter_3.pth'], 'no checkpoint, and only so many batches'
    saved = torch.load(tmp_path / files[1], weights_only=True)
    assert (
        saved['images'] == ['img/7.jpg', 'img/8.jpg']
        and saved['iteration'] == 2
        and math.isnan(saved['terms']['loss_obj'])
    )
    before = random_state()
    terms, module = replay(runner.model, saved)
    assert module == 'data_preprocessor' or module == 'backbone.patch_embed.projection', module
    assert set(terms) == {'loss_obj', 'loss_patch', 'teacher_entropy'} and math.isnan(terms['loss_obj'])
    set_random_state(before)
    # a sound batch and a module that is not
    saved['batch'] = make_batch(batch=2, seed=2)
    assert replay(runner.model, saved)[1] == ''
    with torch.no_grad():
        runner.model.backbone.layers[1].ffn.layers[1].weight[0] = float('inf')
    terms, module = replay(runner.model, saved)
    assert module == 'backbone.layers.1.ffn.layers.1'
    (
        torch.save(saved, tmp_path / 'file.pth'),
        torch.save(dict(state_dict=runner.model.state_dict()), tmp_path / 'weights.pth'),
    )
    (tmp_path / 'config.py').write_text(f'model = {CONFIG!r}\n')
    main([str(tmp_path / 'config.py'), str(tmp_path / 'file.pth'), '--checkpoint', str(tmp_path / 'weights.pth')])
    said = capsys.readouterr().out
    assert 'iteration 3, images img/7.jpg, img/8.jpg' in said and 'loss_obj: nan (in the run: nan)' in said
    assert 'first module with an output that is not finite: backbone.layers.1.ffn.layers.1' in said


def test_a_gradient_alone_is_judged_too_unless_a_loss_scaler_does():
    for scaler, value in ((False, 0.0), (True, -math.inf)):
        weight = torch.nn.Parameter(torch.zeros(2))  # sqrt: loss 0, gradient infinite
        model = torch.nn.Module()
        model.weight = weight
        wrapper, hook = OptimWrapper(torch.optim.SGD([weight], lr=1.0)), NonFiniteLossHook()
        if scaler:
            wrapper.loss_scaler = None
        hook.before_train(SimpleNamespace(model=model, optim_wrapper=wrapper))
        wrapper.update_params(weight.sqrt().sum())
        assert weight.tolist() == [value] * 2 and hook.skipped is not scaler
        assert weight.grad is None


def test_optimizer_groups():
    model = make_odis()
    wrapper = SelfSupOptimWrapperConstructor(dict(optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.1)))(model)
    decayed = {id(p) for p in wrapper.optimizer.param_groups[0]['params']}
    names = {name for name, p in model.named_parameters() if id(p) in decayed}
    assert 'backbone.layers.0.attn.qkv.weight' in names and 'neck.prototypes.weight_v' in names
    assert not names & {
        'backbone.cls_token',
        'backbone.pos_embed',
        'mask_token',
        'neck.prototypes.weight_g',
        'backbone.layers.0.ln1.weight',
    }
    total = sum(len(g['params']) for g in wrapper.optimizer.param_groups)
    assert total == sum(p.requires_grad for p in model.parameters())
    with pytest.raises(ValueError, match='paramwise_cfg'):
        SelfSupOptimWrapperConstructor(dict(optimizer={}), paramwise_cfg=dict(norm_decay_mult=0.0))


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
    optim, hook, told = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.5)), NonFiniteLossHook(), []
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
