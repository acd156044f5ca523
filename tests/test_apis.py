"""train() and test() as functions: work dirs, checkpoints that are found, the scaled learning rate, logs."""

import errno
import json
import logging
import os
import time
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from helpers import FOUR_STEPS, toy_runner
from odis_mm import apis
from odis_mm.config import parse_options
from odis_mm.models.linear import bf16_slowdown
from odis_mm.utils.errors import ConfigError


def test_work_dir_without_permission(tmp_path, monkeypatch):
    (tmp_path / 'file').touch()
    with pytest.raises(ConfigError, match='cannot write to the work dir .*choose another one with --work-dir'):
        apis.train('odis_demo', work_dir=str(tmp_path / 'file' / 'below'))

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, 'Permission denied')

    monkeypatch.setattr(apis.tempfile, 'TemporaryFile', refuse)
    with pytest.raises(ConfigError, match='Permission denied'):
        apis.train('odis_demo', work_dir=str(tmp_path))


def test_a_run_in_the_folder_of_another_is_told(tmp_path):
    cfg = Config(dict(work_dir=str(tmp_path)))
    assert apis.use_resume(cfg, None) == []
    torch.save({}, tmp_path / 'epoch_2.pth')
    ((level, text),) = apis.use_resume(cfg, None)
    assert level == logging.WARNING and f'{tmp_path} holds checkpoints of another run' in text and '--work-dir' in text


def test_latest_checkpoint(tmp_path):
    assert apis.latest_checkpoint(str(tmp_path)) is None
    for name in ('epoch_2.pth', 'epoch_10.pth', 'epoch_10_backbone.pth', 'epoch_11.pth.part'):
        torch.save({}, tmp_path / name)
    assert apis.latest_checkpoint(str(tmp_path)) == str(tmp_path / 'epoch_10.pth')
    (tmp_path / 'last_checkpoint').write_text('/where/the/folder/was/epoch_2.pth')
    assert apis.latest_checkpoint(str(tmp_path)) == str(tmp_path / 'epoch_2.pth')
    (tmp_path / 'last_checkpoint').write_text('')  # killed or out of space while it was written
    assert apis.latest_checkpoint(str(tmp_path)) == str(tmp_path / 'epoch_10.pth')


def test_scaled_lr_counts_accumulation(tmp_path):
    runner = toy_runner(
        tmp_path,
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1), accumulative_counts=4),
        auto_scale_lr=dict(enable=True, base_batch_size=16),
    )
    assert apis.scale_lr(runner) == 'lr = 0.1 x (1 rank x 2 images x 4 accumulated)/16 = 0.05 at a global batch of 8'
    runner.train()
    assert runner.optim_wrapper.get_lr()['lr'] == [0.05]


def test_runs_of_one_process_within_a_second_keep_their_own_logs(tmp_path, monkeypatch):
    monkeypatch.setattr(time, 'strftime', lambda *_: '20260101_000000')
    logs = []
    for name in ('first', 'second'):
        content = dict(
            model=dict(type='ToyOfTests'),
            work_dir=str(tmp_path / name),
            visualizer=dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')], name='visualizer'),  # mmdet
        )
        cfg = Config(content, filename=__file__)
        runner = apis.build_runner(cfg)
        runner.visualizer.add_scalar('mine', len(logs), step=1)
        runner.logger.info(f'said by the {name}')
        runner.message_hub.update_info('who', name)
        assert 'experiment_name' not in cfg and cfg.visualizer.name == 'visualizer'
        logs.append(runner)
    for name, runner in zip(('first', 'second'), logs):
        text = Path(runner.log_dir, f'{runner.timestamp}.log').read_text()
        assert [n for n in ('first', 'second') if f'said by the {n}' in text] == [name]
        assert runner.message_hub.get_info('who') == name
        (scalars,) = (tmp_path / name).glob('*/vis_data/*.json')
        assert json.loads(scalars.read_text())['mine'] == (name == 'second')


@pytest.mark.parametrize('slowdown, told', [(2.0, True), (0.5, False)])
def test_bf16_that_is_slower_than_float32_is_told(demo, tmp_path, monkeypatch, slowdown, told):
    assert 0.01 < bf16_slowdown() < 1000
    monkeypatch.setattr(apis, 'bf16_slowdown', lambda: slowdown)
    options = {**parse_options(FOUR_STEPS), 'train_dataloader.dataset.data_root': demo}
    apis.train('odis_demo', work_dir=str(tmp_path), options=options, amp='bf16')
    (log,) = tmp_path.glob('*/*.log')
    assert ('bf16 products take 2.0 times as long as float32 ones on this processor' in log.read_text()) == told


@pytest.mark.parametrize('launcher, name', [('slurm', 'SLURM_LOCALID'), ('mpi', 'OMPI_COMM_WORLD_LOCAL_RANK')])
def test_each_launcher_tells_a_rank_its_gpu_in_its_own_way(launcher, name, monkeypatch, demo, tmp_path):
    monkeypatch.setenv('ODIS_DEMO_ROOT', demo)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '0,1')
    monkeypatch.setenv('LOCAL_RANK', '0')  # of something else
    monkeypatch.setattr(apis, 'build_runner', lambda cfg: 1 / 0)
    for rank, error, text in ((1, ZeroDivisionError, ''), (2, ConfigError, 'local rank 2 has no GPU of its own')):
        monkeypatch.setenv(name, str(rank))
        with pytest.raises(error, match=text):
            apis.train('odis_demo', work_dir=str(tmp_path), launcher=launcher)
        # what mmengine's DDP reads; of slurm mmengine sets it itself, after that
        assert launcher == 'slurm' or rank == 2 or os.environ['LOCAL_RANK'] == '1'
