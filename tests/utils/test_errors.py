"""User errors end in one sentence, everything else in its traceback."""

import errno
import os
import pickle

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch.utils.data import DataLoader, Dataset

from helpers import ROOT, TINY_RUN
from odis_mm.cli import main
from odis_mm.utils import errors
from odis_mm.utils.errors import AnnotationError, BadImageError, ConfigError, MissingFileError, explain, run_command

CLASSES = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.UserError)]


@pytest.mark.parametrize('error', CLASSES, ids=lambda cls: cls.__name__)
def test_each_class_ends_in_its_sentence(error):
    assert explain(error('image x.jpg is\n  truncated')) == 'image x.jpg is truncated'
    assert str(pickle.loads(pickle.dumps(error('between processes')))) == 'between processes'


def test_faults_of_the_code_keep_their_traceback(tmp_path):
    for error in (ValueError('x'), KeyError('x'), RuntimeError('x'), TypeError('x'), AssertionError('x'), OSError('x')):
        assert explain(error) is None
    with pytest.raises(FileNotFoundError) as gone:
        open(tmp_path / 'gone.json')
    assert explain(gone.value).startswith(f'{tmp_path}/gone.json: No such file')
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), 'epoch_1.pth')
    assert explain(full).startswith('no space left on the device for epoch_1.pth')
    for number in (errno.EDQUOT, errno.EFBIG):  # as a write to an open file tells it
        assert explain(OSError(number, os.strerror(number))) == (
            f'{os.strerror(number)}: make room and continue with --resume.'
        )


def test_a_command_exits_with_2_or_raises(capsys, monkeypatch):
    def wrong():
        raise ConfigError("model has no key 'archh'")

    def fault():
        raise KeyError('archh')

    assert run_command(lambda: 3) == 3
    monkeypatch.delenv('RANK', raising=False)
    with pytest.raises(SystemExit) as stop:
        run_command(wrong)
    assert stop.value.code == errors.USER_ERROR
    monkeypatch.setenv('RANK', '1')
    with pytest.raises(SystemExit):
        run_command(wrong)
    assert capsys.readouterr().err.splitlines() == [
        "error: model has no key 'archh'",
        "error (rank 1): model has no key 'archh'",
    ]
    with pytest.raises(KeyError):
        run_command(fault)
    monkeypatch.setenv('ODIS_MM_DEBUG', '1')
    with pytest.raises(ConfigError):
        run_command(wrong)


class Failing(Dataset):
    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 2

    def __getitem__(self, index):
        raise self.error


@pytest.mark.parametrize(
    'error, told',
    [
        (AnnotationError('a.json: the box of\nimage 3 has no width'), 'a.json: the box of image 3 has no width'),
        (BadImageError('x.jpg is truncated'), 'x.jpg is truncated'),
        (MissingFileError('no folder photos'), 'no folder photos'),
        (KeyError('bbox'), None),
        (ValueError('a fault'), None),
    ],
)
def test_errors_of_loading_workers_are_told_as_those_of_the_process(error, told):
    with pytest.raises(type(error)) as caught:
        next(iter(DataLoader(Failing(error), num_workers=1)))
    assert 'in DataLoader worker process' in str(caught.value) and explain(caught.value) == told


@HOOKS.register_module(name='PlantedByTests', force=True)
class Planted(Hook):
    error = None

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        raise self.error


def test_a_bug_in_a_hook_shows_its_traceback_and_a_user_error_does_not(demo, tmp_path, monkeypatch, capsys):
    base = str(ROOT / 'configs/odis_demo.py')
    hooks = "custom_hooks = [*_base_.custom_hooks, dict(type='PlantedByTests')]"
    (tmp_path / 'planted.py').write_text(f'_base_ = [{base!r}]\n{hooks}\n')
    monkeypatch.setenv('ODIS_DEMO_ROOT', demo)
    monkeypatch.delenv('RANK', raising=False)
    command = ['train', str(tmp_path / 'planted.py'), '--work-dir', str(tmp_path / 'out'), '--cfg-options', *TINY_RUN]
    monkeypatch.setattr(Planted, 'error', ValueError('a bug of ours'))
    with pytest.raises(ValueError, match='^a bug of ours$'):  # reaches the interpreter, which prints the traceback
        main(command)
    monkeypatch.setattr(Planted, 'error', ConfigError('no such\nthing'))
    with pytest.raises(SystemExit) as stop:
        main(command)
    assert stop.value.code == 2 and capsys.readouterr().err.splitlines()[-1] == 'error: no such thing'
    with pytest.raises(SystemExit) as stop:
        main([*command, 'model.backbone.archh=3'])
    assert stop.value.code == 2 and "has no key 'archh'" in capsys.readouterr().err.splitlines()[-1]


def test_ctrl_c_is_one_sentence(capsys, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.delenv('ODIS_MM_DEBUG', raising=False)
    with pytest.raises(SystemExit) as stop:
        run_command(interrupted)
    assert stop.value.code == 130 and capsys.readouterr().err == 'error: interrupted by Ctrl-C.\n'
    monkeypatch.setenv('ODIS_MM_DEBUG', '1')
    with pytest.raises(KeyboardInterrupt):
        run_command(interrupted)


def no_memory_on_the_device():
    raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 298.02 GiB. GPU 0 has a capacity of 78 GiB')


def a_worker_is_ended():
    raise RuntimeError('DataLoader worker (pid 123) is killed by signal: Killed. ')


@pytest.mark.parametrize(
    'call, asked',
    [
        (lambda: torch.empty(2**60), '4611686018427387904 bytes'),
        (lambda: torch.empty(2**62), ''),
        (lambda: np.empty(2**59), '4.00 EiB'),
        (no_memory_on_the_device, '298.02 GiB'),
        (a_worker_is_ended, ''),
    ],
)
def test_too_little_memory_ends_in_one_sentence(call, asked):
    with pytest.raises((MemoryError, RuntimeError)) as caught:
        call()
    sentence = explain(caught.value)
    assert sentence.startswith(f'out of memory{f" ({asked} more were needed)" if asked else ""}: ')
    assert '--size' in sentence and '--batch' in sentence
