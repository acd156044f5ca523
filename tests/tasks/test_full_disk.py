"""A disk that is really full: one sentence, what was written stays whole, and --resume goes on once there is room."""

import json
import shutil
import subprocess
from functools import partial

import pytest

from helpers import forked
from odis_mm import cli
from odis_mm.engine.resume import damage

TINY = [
    'model.backbone.arch.embed_dims=32',
    'model.backbone.arch.num_layers=2',
    'model.backbone.arch.feedforward_channels=64',
    'model.neck.in_channels=32',
    'default_hooks.logger.interval=1',
]


@pytest.fixture
def small_disk(tmp_path):
    """Room for one checkpoint of 6 MB and the pictures, and not for a second one."""
    disk = tmp_path / 'disk'
    disk.mkdir()
    if shutil.which('mount') is None:
        pytest.skip('a disk to fill needs the command mount')
    done = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=9m', 'tmpfs', str(disk)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f'a disk to fill needs the right to mount one ({done.stderr.strip()})')
    yield disk
    subprocess.run(['umount', '-l', str(disk)], check=True)


def test_pretraining(coco_folder, small_disk, tmp_path):
    run = small_disk / 'run'
    command = [
        'pretrain',
        '--data',
        str(coco_folder),
        '--work-dir',
        str(run),
        '--steps',
        '4',
        '--size',
        '16',
        '--batch',
        '5',
    ]
    command += ['--cfg-options', *TINY]
    done = forked(partial(cli.main, command), tmp_path)
    said = done.stderr
    assert done.returncode == 2 and 'Traceback' not in said, said
    assert said.splitlines()[-1] == (
        f'error: could not write a checkpoint to {run}: No space left on device; make room or fix the permissions, or '
        f'the disk, and continue with --resume (last good checkpoint: {run}/epoch_1.pth).'
    )
    assert sorted(path.name for path in run.glob('*.pth*')) == ['epoch_1.pth', 'epoch_1_backbone.pth']
    assert damage(str(run / 'epoch_1.pth')) is None
    (scalars,) = run.glob('*/vis_data/scalars.json')
    assert [json.loads(line)['step'] for line in scalars.read_text().splitlines()][:2] == [1, 2]
    with open(scalars, 'a') as file:
        file.write('{"loss": 1.')  # where a disk ends within a line

    subprocess.run(['mount', '-o', 'remount,size=100m', str(small_disk)], check=True)
    done = forked(partial(cli.main, [*command, '--resume']), tmp_path)
    assert done.returncode == 0 and f'pretrained backbone: {run}/epoch_2_backbone.pth' in done.stdout
    assert damage(str(run / 'epoch_2.pth')) is None and (run / 'curves.png').stat().st_size > 0
