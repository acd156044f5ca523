"""Other systems: one without POSIX signals, locks and forks, and data roots as Windows writes them."""

import os
import subprocess
import sys

import pytest

from helpers import ROOT
from odis_mm.config import load_config
from odis_mm.engine.hooks import PreemptionHook
from odis_mm.utils.errors import ConfigError

WITHOUT_POSIX = """
import os, signal, sys
import torch, cv2, mmengine, mmcv, mmpretrain  # which may need what is missing below
for name in ('SIGHUP', 'SIGUSR1', 'SIGUSR2', 'SIGKILL', 'pthread_sigmask', 'sigwaitinfo', 'SIG_BLOCK', 'SIG_SETMASK'):
    delattr(signal, name)
for name in ('getuid', 'killpg', 'setsid', 'getppid'):
    delattr(os, name)
for name in ('fcntl', 'resource', 'pwd', 'grp'):
    sys.modules[name] = None
import odis_mm
from odis_mm.engine.hooks import PreemptionHook
from odis_mm.datasets import ObjectDataset
import odis_mm.transfer, odis_mm.evaluation, odis_mm.evaluation.knn, odis_mm.evaluation.regions
from odis_mm import extract_object_features
from odis_mm.cli import COMMANDS
from importlib import import_module
for command in COMMANDS.values():
    import_module(command.module)
assert {number.name for number in PreemptionHook().signals} <= {'SIGTERM', 'SIGINT'}
from odis_mm.utils.files import locked
with locked(sys.argv[1]):
    print('fine')
"""


def test_imports_without_posix(tmp_path):
    run = subprocess.run(
        [sys.executable, '-c', WITHOUT_POSIX, tmp_path / 'lock'],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert run.stdout.strip().endswith('fine'), run.stderr[-1500:]


def test_signals_that_no_run_gets_are_refused():
    with pytest.raises(ConfigError, match='SIGFOO'):
        PreemptionHook(['SIGFOO'])


@pytest.mark.parametrize(
    'root', [r'D:\new\coco', "/data/o'neill/coco", '/data/a "b"/coco', r'\\server\share', '/data/100%/{x}', '/data/ü']
)
@pytest.mark.parametrize('name', ['odis_vits_coco', 'mask-rcnn_vits_fpn_1x_coco'])
def test_data_roots_of_any_kind(monkeypatch, tmp_path, root, name):
    monkeypatch.setenv('COCO_ROOT', root)
    cfg = load_config(name)
    assert cfg.train_dataloader.dataset.data_root == root and os.environ['COCO_ROOT'] == root
    if 'val_evaluator' in cfg:
        assert cfg.val_evaluator.ann_file == f'{root}/annotations/instances_val2017.json'
    cfg.dump(str(tmp_path / 'again.py'))
    assert load_config(tmp_path / 'again.py').train_dataloader.dataset.data_root == root


def test_a_plain_data_root_stays(monkeypatch):
    monkeypatch.setenv('COCO_ROOT', '/data/coco 2017')
    assert load_config('odis_vits_coco').train_dataloader.dataset.data_root == '/data/coco 2017'
