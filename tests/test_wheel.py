"""A wheel of this tree, installed elsewhere, trains from another folder."""

import sys

import pytest

from helpers import TINY_RUN, environment, run_command_line

pytestmark = pytest.mark.slow


def test_installed_wheel_from_another_folder(installed_wheel, demo, tmp_path):
    assert (installed_wheel / 'odis_mm/.mim/tools/dist_train.sh').is_file() and list(
        (installed_wheel / 'odis_mm/.mim/configs').rglob('mask-rcnn_*.py')
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
        environment(demo, PYTHONPATH=str(installed_wheel)),
    )
    assert 'there is no checkpoint in out, so training starts at the beginning' in said
    assert 'one process (CPU, ' in said or 'one process (NVIDIA' in said
    assert (tmp_path / 'out/epoch_2.pth').is_file()
