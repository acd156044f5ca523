"""The hooks in a real run, and two ranks against one."""
import copy
import os
import os.path as osp

import pytest
import torch
import torch.multiprocessing as mp
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from test_models import K, make_batch, make_odis

import odis_mm  # noqa: F401
from odis_mm.engine.optim import SelfSupOptimWrapperConstructor
from odis_mm.models import ViewPreprocessor


class Views(torch.utils.data.Dataset):
    """Collated-batch content per index, so that a plain loader of batch size 1 feeds the model."""

    def __init__(self, nan_at=None):
        self.nan_at = nan_at

    def __len__(self):
        return 4

    def __getitem__(self, index):
        data = make_batch(batch=2, seed=index)
        data['data_samples']['img_id'] = torch.tensor([7, 8])
        return dict(data, poison=index == self.nan_at)


class Poisoned(ViewPreprocessor):
    def forward(self, data, training=False):
        data = super().forward(data, training)
        if data.pop('poison'):
            data['inputs'][0][0, 0, 0, 0] = float('nan')
        return data


def run(tmp_path, nan_at=None, epochs=2, accumulate=1, lr=.01, **kwargs):
    init_default_scope('mmpretrain')
    model = make_odis(momentum=dict(start=.5, end=1.))
    model.data_preprocessor = Poisoned()
    loader = torch.utils.data.DataLoader(Views(nan_at), batch_size=1, collate_fn=lambda items: items[0])
    runner = Runner(
        model, str(tmp_path), train_dataloader=loader, train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=lr, weight_decay=.04), accumulative_counts=accumulate,
                           constructor='SelfSupOptimWrapperConstructor'),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=1), logger=dict(type='LoggerHook', interval=1)),
        custom_hooks=[dict(type='NonFiniteLossHook'), dict(type='ExportTeacherHook'),
                      dict(type='SelfSupScheduleHook', weight_decay_end=.4, freeze_prototypes_epochs=1)],
        experiment_name=f'{osp.basename(tmp_path)}_{epochs}_{accumulate}_{nan_at}', default_scope='mmpretrain', **kwargs)
    return runner


def test_a_run_moves_the_teacher_and_exports_it(tmp_path):
    runner = run(tmp_path)
    start = copy.deepcopy(runner.model.state_dict())
    moves, seen = [], []
    original = runner.model.update_teacher
    runner.model.update_teacher = lambda: (moves.append(runner.model.momentum), original())[1]


    before = runner.model.set_progress
    runner.model.set_progress = lambda *a: (seen.append(runner.optim_wrapper.optimizer.param_groups[0]['weight_decay']), before(*a))[1]
    prototypes = []
    step_end = runner.model.head.step
    runner.model.head.step = lambda: (prototypes.append(runner.model.neck.prototypes.weight_v.clone()), step_end())[1]
    runner.train()
    assert len(moves) == 8 and moves[0] == .5 and moves == sorted(moves) and moves[-1] < 1
    assert all(torch.equal(p, start['neck.prototypes.weight_v']) for p in prototypes[:4]), 'no gradient in epoch 0'
    assert not torch.equal(prototypes[4], prototypes[3])
    groups = runner.optim_wrapper.optimizer.param_groups
    assert len(groups) == 2 and groups[1]['weight_decay'] == 0 and .3 < groups[0]['weight_decay'] < .4
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


def test_non_finite_loss_names_term_images_and_checkpoint(tmp_path):
    runner = run(tmp_path, nan_at=1)
    with pytest.raises(FloatingPointError, match=r'loss_obj is not finite at iteration 2 \(image ids \[7, 8\]\); last good checkpoint: none'):
        runner.train()
    assert not [f for f in os.listdir(tmp_path) if f.endswith('.pth')]


def test_optimizer_groups():
    model = make_odis()
    wrapper = SelfSupOptimWrapperConstructor(dict(optimizer=dict(type='AdamW', lr=1., weight_decay=.1)))(model)
    decayed = {id(p) for p in wrapper.optimizer.param_groups[0]['params']}
    names = {name for name, p in model.named_parameters() if id(p) in decayed}
    assert 'backbone.layers.0.attn.qkv.weight' in names and 'neck.prototypes.weight_v' in names
    assert not names & {'backbone.cls_token', 'backbone.pos_embed', 'mask_token', 'neck.prototypes.weight_g', 'backbone.layers.0.ln1.weight'}
    total = sum(len(g['params']) for g in wrapper.optimizer.param_groups)
    assert total == sum(p.requires_grad for p in model.parameters())
    with pytest.raises(ValueError, match='paramwise_cfg'):
        SelfSupOptimWrapperConstructor(dict(optimizer={}), paramwise_cfg=dict(norm_decay_mult=0.))


def train_steps(batches, wrap=lambda m: m, **kwargs):
    """Three optimizer steps of SGD on given views; returns losses and the state afterwards."""
    model = make_odis(**kwargs)
    wrapped = wrap(model)
    optim = OptimWrapper(torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=.5), clip_grad=dict(max_norm=.5))
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
    return dict(inputs=[part(x) for x in data['inputs']], data_samples=dict(
        object_mask=[part(x) for x in samples['object_mask']], object_visible=samples['object_visible'][rank::world],
        mim_mask=part(samples['mim_mask'])))


def rank_main(rank, world, folder, balance):
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=world)
    batches = [shard(make_batch(batch=4, seed=s), rank, world) for s in range(3)]
    losses, state = train_steps(batches, lambda m: MMDistributedDataParallel(m, broadcast_buffers=False), head=dict(balance=balance))
    torch.save(dict(losses=losses, state=state), f'{folder}/rank{rank}.pt')
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize('balance', ['center', 'sinkhorn'])
def test_two_ranks_equal_one_with_twice_the_batch(tmp_path, balance):
    mp.spawn(rank_main, args=(2, str(tmp_path), balance), nprocs=2)
    losses, state = train_steps([make_batch(batch=4, seed=s) for s in range(3)], head=dict(balance=balance))
    ranks = [torch.load(tmp_path / f'rank{r}.pt', weights_only=True) for r in range(2)]
    torch.testing.assert_close(torch.tensor([r['losses'] for r in ranks]).mean(0), torch.tensor(losses), atol=1e-5, rtol=1e-5)
    for rank in ranks:
        for key, value in state.items():
            torch.testing.assert_close(rank['state'][key], value, atol=1e-5, rtol=1e-5, msg=lambda m: f'{key}: {m}')
    assert state['head.token_center.value'].abs().max() > 1e-3 and len(state['head.token_center.value']) == K
