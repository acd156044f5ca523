"""A resumed run follows the settings it was started with, and its log says no more than it does: ten settings, log,
numbers and what trains."""

import json
import logging
import math
import multiprocessing
import shutil
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim.optimizer import register_optimizer_step_pre_hook

from helpers import TINY_RUN
from odis_mm import apis
from odis_mm.config import parse_options
from odis_mm.engine.hooks import LoadingHook
from odis_mm.models import ODIS

LR = 1e-3  # of odis_demo, at a global batch of 128


class Lines(logging.Handler):
    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


@pytest.fixture
def trained(monkeypatch):
    """What trains: of each iteration the images, the type in which matrices are multiplied, and the worker processes;
    of each optimizer step the learning rate and the largest norm of a gradient."""
    iterations, steps, before = [], [], set(multiprocessing.active_children())

    def watched(self, inputs, data_samples, losses=ODIS.compute_losses):
        product = torch.ones(1, 1) @ torch.ones(1, 1)
        workers = set(multiprocessing.active_children()) - before
        iterations.append((len(data_samples['object_visible']), product.dtype, len(workers)))
        return losses(self, inputs, data_samples)

    def before_step(optimizer, *_):
        gradients = [p.grad for group in optimizer.param_groups for p in group['params'] if p.grad is not None]
        steps.append((optimizer.param_groups[0]['lr'], max(float(grad.norm()) for grad in gradients)))

    monkeypatch.setattr(ODIS, 'compute_losses', watched)
    handle = register_optimizer_step_pre_hook(before_step)
    yield iterations, steps
    handle.remove()


def run(folder, options=(), **kwargs):
    """Train; return the runner, its log and the scalars of its iterations."""
    options = parse_options([*TINY_RUN, 'default_hooks.checkpoint.max_keep_ckpts=-1', *options])
    runner = apis.train('odis_demo', work_dir=str(folder), options=options, **kwargs)
    newest = max(Path(folder).glob('*/vis_data/scalars.json'), key=lambda path: path.parent.parent.name)
    rows = [json.loads(line) for line in newest.read_text().splitlines()]
    (log,) = newest.parent.parent.glob('*.log')
    return runner, log.read_text(), [row for row in rows if 'loss' in row]


@pytest.fixture(scope='module')
def first(demo, tmp_path_factory):
    """Two epochs of four iterations, of which the first is a checkpoint to resume from."""
    folder = tmp_path_factory.mktemp('first') / 'run'
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('ODIS_DEMO_ROOT', demo)
        run(folder)
    for name in ('epoch_2.pth', 'epoch_2_backbone.pth', 'epoch_2_backbone.md'):
        (folder / name).unlink()
    (folder / 'last_checkpoint').write_text(str(folder / 'epoch_1.pth'))
    for logs in folder.glob('2*/'):
        logs.rename(folder / '20000101_000000')  # a run of the same second would add to them
    return folder


def schedule(iteration, peak, warmup, total):
    """Linear from 1e-6 of the peak, then half a cosine to 1e-6, as the recipe has it."""
    if iteration < warmup:
        return peak * (1e-6 + (1 - 1e-6) * iteration / (warmup - 1)) if warmup > 1 else peak
    return 1e-6 + 0.5 * (peak - 1e-6) * (1 + math.cos(math.pi * (iteration - warmup) / (total - warmup)))


# options; (peak lr, warm-up, length, iterations of an epoch) that they mean; what the log must tell
CASES = dict(
    nothing=([], (LR * 4 / 128, 4, 8, 4), None),
    lr=(['optim_wrapper.optimizer.lr=0.01'], (10 * LR * 4 / 128, 4, 8, 4), 'optim_wrapper.optimizer.lr: 0.001 -> 0.01'),
    length=(['train_cfg.max_epochs=6'], (LR * 4 / 128, 4, 24, 4), 'train_cfg.max_epochs: 2 -> 6'),
    batch=(['train_dataloader.batch_size=8'], (LR * 8 / 128, 2, 4, 2), 'train_dataloader.batch_size: 4 -> 8'),
    accumulation=(
        ['optim_wrapper.accumulative_counts=2'],
        (LR * 8 / 128, 4, 8, 4),
        'optim_wrapper.accumulative_counts: 1 -> 2',
    ),
    warmup=(
        ['train_cfg.max_epochs=4', 'param_scheduler.0.end=2', 'param_scheduler.1.begin=2'],
        (LR * 4 / 128, 8, 16, 4),
        'param_scheduler.0.end: 1 -> 2',
    ),
    seed=(['randomness.seed=5'], (LR * 4 / 128, 4, 8, 4), 'randomness.seed: 0 -> 5'),
    data=(['train_dataloader.dataset.data_fraction=0.5'], (LR * 4 / 128, 2, 4, 2), 'dataset.data_fraction: 1.0 -> 0.5'),
    workers=(['train_dataloader.num_workers=1'], (LR * 4 / 128, 4, 8, 4), 'train_dataloader.num_workers: 0 -> 1'),
    amp=([], (LR * 4 / 128, 4, 8, 4), "'SafeOptimWrapper' -> 'mmpretrain.AutocastOptimWrapper'"),
    clip=(
        ['optim_wrapper.clip_grad.max_norm=0.01'],
        (LR * 4 / 128, 4, 8, 4),
        'optim_wrapper.clip_grad.max_norm: 3.0 -> 0.01',
    ),
)


@pytest.mark.parametrize('name', CASES)
def test_a_changed_setting_is_told_and_followed(name, first, demo, tmp_path, monkeypatch, trained):
    monkeypatch.setenv('ODIS_DEMO_ROOT', demo)
    options, (peak, warmup, total, epoch), told = CASES[name]
    folder = tmp_path / 'run'
    shutil.copytree(first, folder)
    runner, log, rows = run(folder, options, resume='latest', amp='bf16' if name == 'amp' else None)
    assert [row['step'] for row in rows] == list(range(epoch + 1, total + 1)), (
        'one epoch was done, whatever its length is now'
    )
    for row in rows:
        assert row['lr'] == pytest.approx(schedule(row['step'] - 1, peak, warmup, total), rel=1e-4), row
    iterations, steps = trained
    batch, accumulated = (8 if name == 'batch' else 4), (2 if name == 'accumulation' else 1)
    dtype = torch.bfloat16 if name == 'amp' else torch.float32
    assert iterations == [(batch, dtype, int(name == 'workers'))] * (total - epoch)
    assert [rate for rate, _ in steps] == pytest.approx(
        [schedule(step - 1, peak, warmup, total) for step in range(epoch + accumulated, total + 1, accumulated)],
        rel=1e-4,
    )
    assert (max(norm for _, norm in steps) <= 0.01 * (1 + 1e-4)) is (name == 'clip')
    assert f'lr = {peak:g}' in log or f'= {peak:g} at' in log
    if told is None:
        assert 'settings that differ' not in log and 'follows the new settings' not in log
        return
    (line,) = (line for line in log.splitlines() if 'settings that differ' in line)
    assert told in line
    follows = [line for line in log.splitlines() if 'the learning rate follows the new settings' in line]
    assert len(follows) == (name in ('lr', 'length', 'batch', 'accumulation', 'warmup', 'data'))
    if follows:
        assert f' {schedule(epoch, peak, warmup, total):.4g} at iteration {epoch} of {total} ' in follows[0]
    if name in ('batch', 'data'):
        assert 'an epoch has 2 iterations now, 4 before: iteration 4 of the checkpoint counts as 2 of 4' in log
    if name == 'seed':
        assert 'random numbers begin anew from seed 5' in log and runner.seed == 5
    if name == 'clip':
        assert all(row['grad_norm'] > 0.01 for row in rows), 'the log has the norm before it is clipped'


def test_other_settings_of_the_optimizer_are_followed_too(first, demo, tmp_path, monkeypatch):
    monkeypatch.setenv('ODIS_DEMO_ROOT', demo)
    shutil.copytree(first, tmp_path / 'run')
    options = ['optim_wrapper.optimizer.betas=0.8,0.9', 'optim_wrapper.optimizer.weight_decay=0.2']
    options += ['default_hooks.schedule.weight_decay_end=0.3']
    runner, log, rows = run(tmp_path / 'run', options, resume='latest')
    decayed, spared = runner.optim_wrapper.optimizer.param_groups
    assert tuple(decayed['betas']) == (0.8, 0.9) and spared['weight_decay'] == 0
    assert decayed['initial_weight_decay'] == 0.2 and 0.2 < decayed['weight_decay'] < 0.3
    for told in ('optimizer.weight_decay: 0.04 -> 0.2', 'default_hooks.schedule.weight_decay_end: 0.04 -> 0.3'):
        assert told in log
    assert float(runner.optim_wrapper.optimizer.state[decayed['params'][0]]['step']) == 8, 'its state goes on'


def test_views_of_another_size_leave_the_state_of_the_positions(first, demo, tmp_path, monkeypatch):
    """That is of another shape than the resampled positions, and torch writes past its end."""
    monkeypatch.setenv('ODIS_DEMO_ROOT', demo)
    shutil.copytree(first, tmp_path / 'run')
    options = ['model.backbone.img_size=48', 'train_dataloader.dataset.pipeline.1.views.0.size=48']
    runner, log, rows = run(tmp_path / 'run', options, resume='latest')
    assert '--resume: backbone.pos_embed of another shape in the checkpoint is resampled, and the opt' in log
    assert [row['step'] for row in rows] == [5, 6, 7, 8] and all(math.isfinite(row['loss']) for row in rows)
    states = runner.optim_wrapper.optimizer.state
    assert all(state['exp_avg'].shape == parameter.shape for parameter, state in states.items())
    backbone = runner.model.backbone
    assert [float(states[p]['step']) for p in (backbone.pos_embed, backbone.patch_embed.projection.bias)] == [4, 8]


def test_a_copied_work_dir_goes_on_from_its_own_files(first, demo, tmp_path, monkeypatch):
    monkeypatch.setenv('ODIS_DEMO_ROOT', demo)
    copied = tmp_path / 'copy'
    shutil.copytree(first, copied)
    before = {path.name: path.read_bytes() for path in first.glob('epoch*')}
    runner, log, _ = run(
        copied, ['train_cfg.max_epochs=3', 'default_hooks.checkpoint.max_keep_ckpts=1'], resume='latest'
    )
    assert f'--resume: continuing from {copied}/epoch_1.pth' in log
    assert {path.name: path.read_bytes() for path in first.glob('epoch*')} == before, 'the original is left alone'
    assert runner.message_hub.get_info('last_ckpt') == str(copied / 'epoch_3.pth')
    assert str(first) not in str(torch.load(copied / 'epoch_3.pth', weights_only=True)['message_hub']['runtime_info'])
    moved = tmp_path / 'elsewhere'
    copied.rename(moved)
    assert apis.latest_checkpoint(str(moved)) == str(moved / 'epoch_3.pth')


def test_a_run_that_ended_within_an_epoch_is_lengthened_by_what_was_asked_for(demo, tmp_path, monkeypatch):
    monkeypatch.setenv('ODIS_DEMO_ROOT', demo)
    length = ['+train_cfg.max_iters=6', 'train_cfg.max_epochs=None']
    run(tmp_path / 'run', length)
    for logs in tmp_path.glob('run/2*/'):
        logs.rename(logs.with_name('20000101_000000'))
    length[0] = length[0].replace('6', '12')
    _, log, rows = run(tmp_path / 'run', length, resume='latest')
    assert [row['step'] for row in rows] == list(range(7, 13)), 'six of twelve were done, though epochs have four'
    assert 'of the checkpoint counts as' not in log
    for logs in tmp_path.glob('run/20[!0]*/'):
        logs.rename(logs.with_name('20000102_000000'))
    length[0] = length[0].replace('12', '10')
    options = [*length, 'train_dataloader.batch_size=8']
    _, log, rows = run(tmp_path / 'run', options, resume=str(tmp_path / 'run' / 'epoch_2.pth'))
    assert [row['step'] for row in rows] == list(range(4, 11)), 'one epoch and a half are three iterations of eight'


def test_an_epoch_under_way_goes_on_with_another_batch_size(first, demo, tmp_path, monkeypatch):
    """Eight of its sixteen images are done: two iterations of four, which count as one of eight."""
    monkeypatch.setenv('ODIS_DEMO_ROOT', demo)
    folder = tmp_path / 'run'
    shutil.copytree(first, folder)
    content = torch.load(folder / 'epoch_1.pth', weights_only=True)
    content['meta'].update(epoch=1, iter=6)
    content['progress'].update(images=8)
    torch.save(content, folder / 'epoch_1_iter_6.pth')
    _, log, rows = run(folder, ['train_dataloader.batch_size=8'], resume=str(folder / 'epoch_1_iter_6.pth'))
    assert [row['step'] for row in rows] == [4], 'the last of twice two'
    assert rows[0]['lr'] == pytest.approx(schedule(3, LR * 8 / 128, 2, 4), rel=1e-4)
    assert 'iteration 6 of the checkpoint counts as 3 of 4' in log
    assert 'epoch 2 goes on after 8 of 16 images: none is lost or drawn twice' in log


@pytest.mark.parametrize(
    'first, then, done',
    [
        (['train_cfg.max_epochs=1'], ['train_cfg.max_epochs=1'], '1 of 1 epoch'),
        (['train_cfg.max_epochs=None', '+train_cfg.max_iters=2'], ['train_cfg.max_epochs=1'], '1 of 1 epoch'),
        (['train_cfg.max_epochs=None', '+train_cfg.max_iters=2'],) * 2 + ('2 of 2 iterations',),
    ],
)
def test_a_run_that_is_done_says_so(demo, tmp_path, trained, first, then, done):
    iterations, _ = trained
    known = [f'train_dataloader.dataset.data_root={demo}', 'param_scheduler=[]']
    run(tmp_path, [*known, *first])
    iterations.clear()
    run(tmp_path, [*known, *then], resume='auto')
    log = ''.join(path.read_text() for path in tmp_path.glob('*/*.log'))
    assert not iterations and f'--resume: the checkpoint has done {done}: nothing is left to train' in log


def test_counters_of_steps_are_read_in_host_memory(first, demo, tmp_path, monkeypatch):
    """mmengine loads a checkpoint onto the GPU, and torch leaves the counters of an optimizer that is not fused there:
    each parameter would wait for the device at every step."""
    monkeypatch.setenv('ODIS_DEMO_ROOT', demo)
    shutil.copytree(first, tmp_path / 'run')
    seen = []

    def with_counter_on_gpu(self, runner, checkpoint, after=LoadingHook.after_load_checkpoint):
        state = checkpoint['optimizer']['state'][0]
        with FakeTensorMode():
            state['step'] = torch.zeros((), device='cuda')
        after(self, runner, checkpoint)
        seen.append(state['step'].device.type)
        state['step'] = torch.tensor(4.0)

    monkeypatch.setattr(LoadingHook, 'after_load_checkpoint', with_counter_on_gpu)
    run(tmp_path / 'run', resume='latest')
    assert seen == ['cpu']
