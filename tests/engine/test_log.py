"""What is on the screen: the first useful line among the first ten, the share of the run, nothing twice, no reports;
the file has it all."""

import errno
import logging
import os
import re
import sys
import warnings
from contextlib import suppress
from types import SimpleNamespace

import pytest
from mmengine.config import Config

from helpers import TINY_RUN
from odis_mm import apis
from odis_mm.config import parse_options
from odis_mm.engine import log as engine_log
from odis_mm.utils import noise
from odis_mm.utils.errors import FileWriteError


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
    assert runner.log_dir in said[1]
    (scalars,) = tmp_path.glob('*/vis_data/scalars.json')
    assert not any(f'"{double}"' in scalars.read_text() for double in doubles)


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
    logger.warning('a word about "FileClient"')
    assert capsys.readouterr().out == 'a word about "FileClient"\n'


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
