"""A wheel of this tree, installed elsewhere, trains from another folder."""

import shutil
import subprocess
import sys

import pytest

from helpers import ROOT, TINY_RUN, environment, run_command_line

pytestmark = pytest.mark.slow


def test_installed_wheel_from_another_folder(demo, tmp_path):
    source, target = tmp_path / 'source', tmp_path / 'site'
    tracked = subprocess.run(['git', 'ls-files', '-co', '--exclude-standard'], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip('not a git checkout')
    for name in tracked.stdout.splitlines():
        if (ROOT / name).is_file() and not name.startswith(('docs/', 'tests/')):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, '-m', 'pip', '--disable-pip-version-check', '-q']
    run_command_line(
        [*pip, 'wheel', '--no-deps', '--no-build-isolation', '-w', tmp_path, '.'], source, environment(demo)
    )
    run_command_line(
        [*pip, 'install', '--no-deps', '--target', target, next(tmp_path.glob('*.whl'))], tmp_path, environment(demo)
    )
    shutil.rmtree(source)
    assert (target / 'odis_mm/.mim/tools/dist_train.sh').is_file() and list(
        (target / 'odis_mm/.mim/configs').rglob('mask-rcnn_*.py')
    )
    said = run_command_line(
        [
            sys.executable,
            '-m',
            'odis_mm',
            'train',
            'odis_demo',
            '--resume',
            'auto',
            '--work-dir',
            'out',
            '--cfg-options',
            *TINY_RUN,
        ],
        tmp_path,
        environment(demo, PYTHONPATH=str(target)),
    )
    assert 'there is no checkpoint in out, so training starts at the beginning' in said
    assert 'rank 0 of 1 on 1 node' in said
    assert (tmp_path / 'out/epoch_2.pth').is_file()
