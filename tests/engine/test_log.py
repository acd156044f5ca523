"""What is on the screen: the first useful line among the first ten, the share of the run, nothing twice, no reports;
the file has it all."""

import errno
import logging
import os
import re
import sys
import warnings
from contextlib import nullcontext, suppress
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.optim import ConstantLR, OptimWrapper, OptimWrapperDict
from mmengine.runner import LogProcessor
from mmengine.runner.checkpoint import _load_checkpoint  # which prints the line that is kept off the screen

from helpers import TINY_RUN
from odis_mm import apis
from odis_mm.config import parse_options
from odis_mm.engine import log as engine_log
from odis_mm.engine.hooks.progress import DeferredInfoHook
from odis_mm.transfer.mmengine_loading import closed_to_code
from odis_mm.utils import noise
from odis_mm.utils.environment import hardware
from odis_mm.utils.errors import FileWriteError
from odis_mm.utils.files import read_records
from odis_mm.workflows.stages import machines


def test_the_screen_shows_the_run_and_the_file_everything(demo, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('ODIS_DEMO_ROOT', demo)
    runner = apis.train('odis_demo', work_dir=str(tmp_path), options=parse_options(TINY_RUN))
    said = capsys.readouterr().out.splitlines()
    first = next(index for index, line in enumerate(said) if 'Epoch(train)' in line)
    assert first < 10, said[: first + 1]
    iterations = [line for line in said if 'Epoch(train)' in line]
    shares = [float(re.search(r'Epoch\(train\)\s*\[\d\]\[\d/4\]\s+([\d.]+) %', line)[1]) for line in iterations]
    assert shares == [12.5, 25.0, 37.5, 50.0, 62.5, 75.0, 87.5, 100.0]
    assert all(
        ' lr: ' in line and 'loss: ' in line and 'data_wait: ' in line and 'eta: ' in line for line in iterations
    )
    assert all(re.match(r'[\d/]+ [\d:]+  Epoch', line) and len(line) <= engine_log.WIDTH for line in iterations)
    assert not any('loss_obj' in line for line in iterations)  # the parts are among the scalars
    doubles = ('base_lr', 'data_time')
    for text in (
        *doubles,
        'System environment',
        'Hooks will be executed',
        'Exp name',
        'FileClient',
        'HardDisk',
        'Loads checkpoint',
    ):
        assert not [line for line in said if text in line], text
    (log,) = tmp_path.glob('*/*.log')
    for text in ('System environment', 'Config:', 'Hooks will be executed', 'Epoch(train)'):
        assert text in log.read_text(), text
    assert runner.log_dir in said[1] and machines(tmp_path) == [hardware()]
    (scalars,) = tmp_path.glob('*/vis_data/scalars.json')
    assert not any(f'"{double}"' in scalars.read_text() for double in doubles)
    rows = [row for row in read_records(scalars) if 'loss' in row]
    assert len(rows) == 8 and {'loss_obj', 'time', 'images/s', 'visible_share'} <= rows[0].keys()


METHODS = {  # figures of a step beside those of every run, and what there is no room for
    'odis_small': ('loss_obj loss_patch similarity effective_rank visible_share', 'data_wait grad_norm'),
    'alfm_small': (
        'loss_gmsr similarity effective_rank loss_cdlp teacher_entropy',
        'teacher_entropy data_wait grad_norm',
    ),
    'gtsa_small': ('loss_entropy teacher_spread rotation_accuracy', 'data_wait grad_norm'),
    'ibot_small': ('loss_cls loss_patch teacher_entropy', 'grad_norm'),
    'faster-rcnn_small': ('loss_rpn_cls loss_cls acc loss_bbox', ''),
}


@pytest.mark.parametrize('method', METHODS)
def test_what_a_reader_needs_fits_into_a_terminal(method, monkeypatch):
    own, left_out = (names.split() for names in METHODS[method])
    every = ['lr', 'grad_norm', 'loss', 'images/s', 'data_wait', 'time']
    tag = dict.fromkeys(own, -0.123456) | dict.fromkeys(every, 0.0123456)
    monkeypatch.setattr(LogProcessor, 'get_log_after_iter', lambda *_: (dict(tag), 'Epoch(train)  [67][6/6]  lr: 1'))
    hub = SimpleNamespace(runtime_info=dict(eta=3700.0), get_info=lambda name: 3700.0)
    runner = SimpleNamespace(iter=401, max_iters=804, message_hub=hub)
    kept, line = engine_log.RunLogProcessor().get_log_after_iter(runner, 5, 'train')
    assert kept == tag
    assert line.startswith('Epoch(train)  [67][6/6]  50.0 %  lr: 1.23e-02  eta: 1:01:40  loss: 0.0123  ')
    assert len('11/26 12:00:00  ' + line) <= engine_log.WIDTH
    shown = set(re.findall(r'(\S+): ', line)) - {'eta'}
    needed = {name for name in tag if not name.startswith('loss_')} & engine_log.SHOWN.keys()
    assert shown == needed - set(left_out)
    assert {'lr', 'loss', 'images/s'} | ({'similarity', 'effective_rank'} & set(own)) <= shown


def test_figures_that_a_split_does_not_have_are_not_shown(monkeypatch):
    line = 'Iter(val) [1/1]  coco/red cell_precision: nan  coco/bbox_mAP: 0.0010  coco/bbox_mAP_s: -1.0000  time: 0.17'
    monkeypatch.setattr(LogProcessor, 'get_log_after_epoch', lambda *_: ({'coco/bbox_mAP_s': -1}, line))
    tag, shown = engine_log.RunLogProcessor().get_log_after_epoch(None, 0, 'val')
    assert shown == 'Iter(val) [1/1]  coco/bbox_mAP: 0.0010  time: 0.17' and tag == {'coco/bbox_mAP_s': -1}


@pytest.mark.parametrize('several', [False, True])
def test_the_logged_rate_is_the_base_rate(several):
    """And not that of the first group, which with layer-wise decay is the lowest."""
    layer = torch.nn.Linear(2, 2)
    groups = [dict(params=[layer.weight], lr=0.1), dict(params=[layer.bias], lr=0.7)]
    wrapper = OptimWrapper(torch.optim.SGD(groups, lr=1.0))
    schedule = ConstantLR(wrapper, factor=0.5, by_epoch=False)
    alone = OptimWrapper(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=3.0))
    runner = SimpleNamespace(iter=3, message_hub=MessageHub('rate'), optim_wrapper=wrapper)
    if several:
        runner.optim_wrapper = OptimWrapperDict(a=wrapper, b=alone)
    DeferredInfoHook().before_train_iter(runner, 0)
    logged = {name: history.current() for name, history in runner.message_hub.log_scalars.items()}
    assert wrapper.get_lr()['lr'] == [0.05, 0.35] and schedule
    assert logged == ({'train/a.lr': 0.5, 'train/b.lr': 3.0} if several else {'train/lr': 0.5})
    assert runner.message_hub.get_info('iter') == 3


def test_lines_are_dropped_by_name_alone(capsys):
    with noise.quiet_imports():
        print('Could not import OneDL. Skipping OneDL datasets.')
        print('Done (t=0.01s)')
        print('Done (t=0.01s), and more')
        print('Could not import something else.')
        warnings.warn('faster_coco_eval is not installed, metrics will not be computed', stacklevel=1)
        sys.stdout.write('kept\n')
    assert capsys.readouterr().out == 'Done (t=0.01s), and more\nCould not import something else.\nkept\n'
    with pytest.warns(UserWarning) as seen, noise.quiet_warnings():
        warnings.warn('Detected call of `scheduler.step()` before `optimizer.step()`. In PyTorch', stacklevel=1)
        warnings.warn('something a user can act on', stacklevel=1)
    assert [str(warning.message) for warning in seen] == ['something a user can act on']
    logger = logging.Logger('noise')
    logger.addHandler(logging.StreamHandler(sys.stdout))
    noise.quiet_console(logger), noise.quiet_console(logger)
    assert len(logger.handlers[0].filters) == 1
    logger.warning('"FileClient" will be deprecated in future. Please use io functions')
    logger.warning('Advance dataloader 60 steps to skip data that has already been trained')
    logger.warning('a word about "FileClient"')
    assert capsys.readouterr().out == 'a word about "FileClient"\n'


def test_the_file_to_resume_from_is_not_named_twice(tmp_path, capsys):
    torch.save(dict(a=1), tmp_path / 'a.pth')
    for block, lines in ((nullcontext(), 1), (noise.quiet_prints(), 0)):
        with closed_to_code(), block:
            _load_checkpoint(str(tmp_path / 'a.pth'))  # as mmengine's runner does
        assert capsys.readouterr().out.count('Loads checkpoint by') == lines


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='no /dev/full, a file that is always full')
def test_a_log_that_cannot_be_written_costs_one_line(capsys):
    logger, handler = logging.Logger('full'), logging.FileHandler('/dev/full')
    engine_log.tell_once(handler)
    logger.addHandler(handler)
    for _ in range(3):
        logger.warning('a line')
    assert capsys.readouterr().err == '/dev/full: No space left on device: lines of this log are lost.\n'
    logger.warning('%d', 'no number')  # a fault of the code is shown
    assert 'TypeError' in capsys.readouterr().err
    with suppress(OSError):
        handler.close()


def test_the_config_of_a_resumed_run_trains_the_same_again(tmp_path):
    path, filename = tmp_path / 'run.py', 'configs/run.py'
    for resume, kept in ((True, None), (False, 'weights.pth')):  # weights to start from belong to the recipe
        cfg = Config(dict(resume=resume, load_from='weights.pth'), cfg_text='a', filename=filename)
        engine_log.QuietRunner.dump_config(SimpleNamespace(work_dir=str(tmp_path), cfg=cfg))
        written = Config.fromfile(str(path))
        assert (written.resume, written.load_from) == (False, kept)
        assert (cfg.resume, cfg.load_from) == (resume, 'weights.pth')  # the run itself goes on from it


def test_the_config_of_a_run_is_whole_or_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / 'run.py'
    runner = SimpleNamespace(work_dir=str(tmp_path), cfg=Config(dict(a=1), cfg_text='a = 1', filename='configs/run.py'))
    engine_log.QuietRunner.dump_config(runner)
    before = path.read_text()
    assert Config.fromfile(str(path)).a == 1

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, 'fsync', full)
    runner.cfg.a = 2
    with pytest.raises(FileWriteError, match='could not save .*run.py: the disk .* is full'):
        engine_log.QuietRunner.dump_config(runner)
    assert path.read_text() == before and [file.name for file in tmp_path.iterdir()] == ['run.py']
