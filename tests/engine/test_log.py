"""What is on the screen: the first useful line among the first ten, the share of the run, nothing twice, no reports;
the file has it all."""

import logging
import re
import sys
import warnings

import pytest

from helpers import TINY_RUN
from odis_mm import apis
from odis_mm.config import parse_options
from odis_mm.utils import noise


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
        print('Could not import something else.')
        sys.stdout.write('kept\n')
    assert capsys.readouterr().out == 'Could not import something else.\nkept\n'
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
