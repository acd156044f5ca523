"""Interrupted in the middle of an epoch and resumed: the run that was not interrupted, bit for bit."""

import os
import random
import signal
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, init_default_scope
from mmengine.runner import Runner

from helpers import forked_in_group, make_batch, make_odis
from odis_mm import apis
from odis_mm.datasets import EpochSampler
from odis_mm.datasets.transforms import single_thread_worker
from odis_mm.engine.hooks import PreemptionHook
from odis_mm.engine.loops import random_state, set_random_state
from odis_mm.engine.optim import SafeOptimWrapper
from odis_mm.transfer import load_local
from odis_mm.utils.errors import ConfigError


class Views(torch.utils.data.Dataset):
    """Eight small batches by their draws."""

    def __len__(self):
        return 8

    def __getitem__(self, draw):
        return make_batch(batch=2, seed=draw)


@HOOKS.register_module(force=True)
class SendSignal(Hook):
    """To this process, before an iteration."""

    def __init__(self, at: int, name: str):
        self.at, self.name = at, name

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter + 1 == self.at:
            os.kill(os.getpid(), getattr(signal, self.name))


@HOOKS.register_module(force=True)
class AwaitSignal(Hook):
    """Says that an iteration is near, and starts it when the signal is there."""

    def __init__(self, at: int):
        self.at = at

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter + 1 == self.at:
            waits = next(hook for hook in runner.hooks if isinstance(hook, PreemptionHook))
            Path(runner.work_dir, 'near').touch()
            end = time.monotonic() + 30
            while waits.received is None and time.monotonic() < end:
                time.sleep(0.02)
            time.sleep(0.2)  # a worker that follows the signal, too, is gone by now


def first(items):
    return items[0]


def train(
    work_dir,
    at=0,
    name='SIGTERM',
    accumulate=1,
    workers=0,
    awaits=0,
    custom=(),
    length=None,
    checkpoint=None,
    hooks=None,
    **kwargs,
):
    """Two epochs of eight iterations, with random numbers in the model."""
    init_default_scope('mmpretrain')
    torch.manual_seed(1)
    model = make_odis(backbone=dict(drop_path_rate=0.3), momentum=dict(start=0.5, end=1.0))
    data = Views()
    loader = torch.utils.data.DataLoader(
        data,
        batch_size=1,
        sampler=EpochSampler(data, seed=0),
        collate_fn=first,
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=single_thread_worker,
    )
    made = Runner(
        model,
        str(work_dir),
        train_dataloader=loader,
        train_cfg=dict(type='ResumableEpochLoop', **(length or dict(max_epochs=2))),
        optim_wrapper=dict(
            type='SafeOptimWrapper',
            optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.04),
            accumulative_counts=accumulate,
            clip_grad=dict(max_norm=3.0),
            constructor='SelfSupOptimWrapperConstructor',
        ),
        param_scheduler=[
            dict(type='LinearLR', start_factor=0.1, begin=0, end=1, convert_to_iter_based=True),
            dict(type='CosineAnnealingLR', begin=1, convert_to_iter_based=True),
        ],
        default_hooks=dict(
            checkpoint=dict(type='SafeCheckpointHook', **(checkpoint or dict(interval=1))),
            logger=dict(type='LoggerHook', interval=50),
            **(hooks or {}),
        ),
        custom_hooks=[
            dict(type='SelfSupScheduleHook', weight_decay_end=0.4, freeze_prototypes_epochs=1),
            dict(type='PreemptionHook'),
        ]
        + ([dict(type='SendSignal', at=at, name=name)] if at else [])
        + ([dict(type='AwaitSignal', at=awaits)] if awaits else [])
        + list(custom),
        experiment_name=f'resume_{os.path.basename(work_dir)}_{os.urandom(3).hex()}',
        default_scope='mmpretrain',
        log_level='WARNING',
        randomness=dict(seed=3),
        **kwargs,
    )
    try:
        made.train()
    finally:  # as apis.train does
        next(hook for hook in made.hooks if isinstance(hook, PreemptionHook)).put_back()


def resumed(work_dir, **kwargs):
    train(work_dir, load_from=apis.latest_checkpoint(str(work_dir)), resume=True, **kwargs)


def stopped(call, *args, **kwargs) -> int:
    with pytest.raises(SystemExit) as stop:
        call(*args, **kwargs)
    return stop.value.code


def content(work_dir, name='epoch_2.pth') -> dict:
    loaded = load_local(str(Path(work_dir, name)), 'cpu')
    return {key: loaded[key] for key in ('state_dict', 'optimizer', 'param_schedulers', 'progress')} | dict(
        epoch=loaded['meta']['epoch'], iter=loaded['meta']['iter']
    )


def assert_same(a, b, path=''):
    assert type(a) is type(b), path
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_same(a[key], b[key], f'{path}.{key}')
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for i, pair in enumerate(zip(a, b)):
            assert_same(*pair, f'{path}[{i}]')
    else:
        assert a == b, path


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp('undisturbed')
    train(folder)
    return content(folder)


@pytest.mark.parametrize(
    'at, name, written',
    [(3, 'SIGTERM', 'epoch_0_iter_3.pth'), (8, 'SIGUSR1', 'epoch_1.pth'), (13, 'SIGUSR1', 'epoch_1_iter_13.pth')],
)
def test_preempted_and_resumed_is_undisturbed(undisturbed, tmp_path, at, name, written):
    before = signal.getsignal(signal.SIGTERM)
    assert stopped(train, tmp_path, at, name) == 75
    assert signal.getsignal(signal.SIGTERM) is before
    assert apis.latest_checkpoint(str(tmp_path)) == str(tmp_path / written)
    (tmp_path / 'last_checkpoint').write_text('')
    assert apis.latest_checkpoint(str(tmp_path)) == str(tmp_path / written), 'without the note, too'
    torch.rand(5)  # what the process did before must not matter
    resumed(tmp_path)
    assert_same(content(tmp_path), undisturbed)
    assert not list(tmp_path.glob('epoch_*_iter_*')), 'gone with the next regular one'


def test_ctrl_c_saves_and_leaves_and_twice_ends_at_once(undisturbed, tmp_path, capfd):
    assert stopped(train, tmp_path, 3, 'SIGINT') == 130
    assert apis.latest_checkpoint(str(tmp_path)) == str(tmp_path / 'epoch_0_iter_3.pth')
    assert 'once more ends it at once' in capfd.readouterr().err
    with pytest.raises(KeyboardInterrupt):
        resumed(tmp_path, at=5, name='SIGINT', custom=[dict(type='SendSignal', at=5, name='SIGINT')])
    resumed(tmp_path)
    assert_same(content(tmp_path), undisturbed)


def test_random_numbers_and_position_do_matter(undisturbed, tmp_path):
    assert stopped(train, tmp_path, 3) == 75
    path = apis.latest_checkpoint(str(tmp_path))
    loaded = load_local(path, 'cpu')
    loaded['progress']['random'] = []
    torch.save(loaded, path)
    resumed(tmp_path)
    with pytest.raises(AssertionError):
        assert_same(content(tmp_path)['state_dict'], undisturbed['state_dict'])


def test_a_length_in_iterations_ends_within_an_epoch(tmp_path):
    whole, parts, longer = tmp_path / 'whole', tmp_path / 'parts', tmp_path / 'longer'
    length = dict(length=dict(max_iters=11))
    train(whole, **length)
    expected = content(whole)
    assert (expected['iter'], expected['epoch'], expected['progress']['images']) == (11, 2, 0)
    assert stopped(train, parts, 9, **length) == 75
    assert stopped(resumed, parts, at=11, **length) == 75  # all is done but the end of the epoch
    resumed(parts, **length)
    assert_same(content(parts), expected)

    train(longer, length=dict(max_iters=9))
    resumed(longer, length=dict(max_iters=16))  # two epochs long, but the second was not whole
    assert content(longer, 'epoch_3.pth')['iter'] == 16
    resumed(longer, length=dict(max_iters=16))
    assert not (longer / 'epoch_4.pth').exists()


@pytest.mark.parametrize('length', [dict(max_iters=3, max_epochs=1), dict(max_iters=None)])
def test_one_length_is_asked_for(tmp_path, length):
    with pytest.raises(ConfigError, match='train_cfg needs one length'):
        train(tmp_path, length=length)


def test_a_part_of_an_epoch_is_told_in_iterations(tmp_path):
    with pytest.raises(ConfigError, match='max_epochs=0.5 is no whole number: set train_cfg.max_iters'):
        train(tmp_path, length=dict(max_epochs=0.5))
    with pytest.raises(ConfigError, match='max_iters=2.5 is no whole number'):
        train(tmp_path, length=dict(max_iters=2.5))


def test_twice_with_workers(undisturbed, tmp_path):
    assert stopped(train, tmp_path, 2, workers=1) == 75
    assert stopped(resumed, tmp_path, at=12, workers=1) == 75
    resumed(tmp_path, workers=1)
    assert_same(content(tmp_path), undisturbed)


def test_a_signal_to_the_whole_process_group_leaves_the_workers_to_the_run(undisturbed, tmp_path):
    near = tmp_path / 'near'
    began = partial(train, str(tmp_path), workers=2, awaits=3)
    assert forked_in_group(began, tmp_path, near, signal.SIGTERM) == 75
    assert (tmp_path / 'epoch_0_iter_3.pth').is_file()
    again = partial(resumed, str(tmp_path), workers=1, awaits=12)
    assert forked_in_group(again, tmp_path, near, signal.SIGUSR1) == 75
    assert (tmp_path / 'epoch_1_iter_12.pth').is_file()
    assert forked_in_group(partial(resumed, str(tmp_path), workers=2), tmp_path, near) == 0
    assert_same(content(tmp_path), undisturbed)


def test_a_signal_waits_for_the_end_of_an_accumulated_step(tmp_path):
    assert stopped(train, tmp_path, 3, accumulate=2) == 75
    assert (tmp_path / 'epoch_0_iter_4.pth').is_file()


@pytest.fixture(scope='module')
def accumulated(tmp_path_factory):
    """Eight iterations an epoch, three to a step: 3 + 3 + 2."""
    folder = tmp_path_factory.mktemp('accumulated')
    train(folder, accumulate=3)
    return content(folder)


def test_a_run_resumed_between_epochs_loses_no_accumulated_gradient(accumulated, tmp_path):
    train(tmp_path, accumulate=3)
    (tmp_path / 'epoch_2.pth').unlink()
    resumed(tmp_path, accumulate=3)  # last_checkpoint names what is gone
    assert_same(content(tmp_path), accumulated)


def test_a_run_resumed_within_an_epoch_accumulates_as_before(accumulated, tmp_path):
    assert stopped(train, tmp_path, 10, accumulate=3) == 75
    assert (tmp_path / 'epoch_1_iter_11.pth').is_file()
    resumed(tmp_path, accumulate=3)
    assert_same(content(tmp_path), accumulated)


def test_a_checkpoint_by_iterations_waits_for_the_end_of_a_step(tmp_path):
    by_iterations = dict(type='SafeCheckpointHook', interval=4, by_epoch=False)
    train(tmp_path, accumulate=3, custom=[by_iterations])
    assert {path.name for path in tmp_path.glob('iter_*.pth')} == {f'iter_{n}.pth' for n in (6, 8, 14, 16)}


def test_preempted_at_the_end_of_an_epoch_with_checkpoints_by_iterations(undisturbed, tmp_path):
    by_iterations = dict(checkpoint=dict(interval=1, by_epoch=False, max_keep_ckpts=9))
    assert stopped(train, tmp_path, 8, **by_iterations) == 75
    assert content(tmp_path, 'iter_1.pth')['iter'] == 1, 'not that of the end of epoch 1'
    assert content(tmp_path, 'iter_8.pth')['epoch'] == 1
    resumed(tmp_path, **by_iterations)
    assert_same(content(tmp_path, 'iter_16.pth')['state_dict'], undisturbed['state_dict'])

    seldom = dict(checkpoint=dict(interval=6, by_epoch=False))
    assert stopped(train, tmp_path / 'seldom', 8, **seldom) == 75
    assert apis.latest_checkpoint(str(tmp_path / 'seldom')) == str(tmp_path / 'seldom' / 'epoch_1_iter_8.pth')
    resumed(tmp_path / 'seldom', **seldom)
    assert_same(content(tmp_path / 'seldom', 'iter_16.pth')['state_dict'], undisturbed['state_dict'])
    assert not list((tmp_path / 'seldom').glob('epoch_*_iter_*'))


def test_exports_from_before_a_resume_go_with_their_checkpoints(tmp_path):
    options = dict(checkpoint=dict(interval=1, max_keep_ckpts=1), custom=[dict(type='ExportTeacherHook')])
    assert stopped(train, tmp_path, 10, **options) == 75
    assert (tmp_path / 'epoch_1_backbone.pth').is_file()
    (tmp_path / 'epoch_9_backbone.pth').write_bytes(b'without a checkpoint')
    resumed(tmp_path, **options)
    left = {path.name for path in tmp_path.iterdir() if path.suffix in ('.pth', '.md')}
    assert left == {'epoch_2.pth', 'epoch_2_backbone.pth', 'epoch_2_backbone.md', 'epoch_9_backbone.pth'}


def test_epochs_differ_whatever_hooks_there_are(undisturbed, tmp_path):
    train(tmp_path, hooks=dict(sampler_seed=None))
    assert_same(content(tmp_path)['state_dict'], undisturbed['state_dict'])


def test_the_last_step_of_an_epoch_is_the_mean_of_what_is_left():
    weight = torch.nn.Parameter(torch.zeros(1))
    optim = SafeOptimWrapper(torch.optim.SGD([weight], lr=1.0), accumulative_counts=3)
    optim.initialize_count_status(torch.nn.Linear(1, 1), 0, 10)
    moved = []
    for first, stop in ((0, 5), (5, 10)):
        optim.begin_epoch(first, stop)
        for gradient in range(stop - first):
            synced = optim.should_sync()
            optim.update_params((weight * float(gradient)).sum())
            assert synced is (optim.step_skipped is not None)
            moved.append(-weight.item())
    assert moved == [0, 0, 1, 1, 4.5, 4.5, 4.5, 5.5, 5.5, 9]  # means of 0, 1, 2 and of 3, 4


def test_gpus_ask_each_other_now_and_then(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    hook, asked = PreemptionHook(interval=4), []
    hook.end_of_epoch, hook.is_wanted = lambda *_: False, lambda runner: asked.append(runner.iter + 1)
    for world, accumulate, expected in ((2, 1, [4, 8]), (2, 2, [8]), (1, 2, [2, 4, 6, 8])):
        asked.clear()
        for i in range(8):
            hook.after_train_iter(
                SimpleNamespace(
                    iter=i,
                    world_size=world,
                    train_dataloader=None,
                    train_loop=None,
                    optim_wrapper=SimpleNamespace(
                        _accumulative_counts=accumulate, should_update=lambda: (i + 1) % accumulate == 0
                    ),
                ),
                i,
            )
        assert asked == expected
    with pytest.raises(ValueError, match='SIGKILL'):
        PreemptionHook(['SIGKILL'])


def test_another_number_of_ranks_loses_no_image():
    def sampler(rank, world):
        made = EpochSampler(range(22), seed=0)
        made.rank, made.world_size = rank, world
        return made

    done = [draw for rank in (0, 1) for draw in list(sampler(rank, 2))[:3]]
    rest = []
    for rank in range(4):
        made = sampler(rank, 4)
        assert made.start_at(6) == 4
        rest += list(made)
        assert len(list(made)) == 5, 'the next epoch is a whole one, but for 2 images that 4 ranks cannot share'
    assert sorted(done + rest) == sorted(range(22)), 'each once'


def test_random_states_come_back():
    state = random_state()
    first = random.random(), np.random.rand(), torch.rand(3).tolist()
    set_random_state(state)
    assert (random.random(), np.random.rand(), torch.rand(3).tolist()) == first
