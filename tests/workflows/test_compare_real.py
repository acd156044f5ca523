"""The engine with real training, at the smallest size: what the stubs of test_compare.py replace fits together.

Its commands are forked from a process that has imported everything.
"""

import json
from functools import partial

import pytest

from helpers import SMALL_DETECTOR, environment, fork_commands, forked, write_noise_coco
from odis_mm import cli

pytestmark = pytest.mark.slow


def program(plan: str, work_dir: str) -> None:
    fork_commands()
    cli.main(['compare', plan, '--work-dir', work_dir, '--jobs', '1'])


def test_from_the_command_line_to_the_report(tmp_path):
    write_noise_coco(tmp_path / 'data', (('train', 12), ('val', 4)))
    small = {'train_dataloader.batch_size': 6, 'default_hooks.views': None}
    plan = dict(
        data=dict(root='data'),
        starts={'random weights': {}, 'ALFM': dict(recipe='alfm_demo', options=small)},
        detector=dict(size=48, iterations=4, options={'train_dataloader.batch_size': 2, **SMALL_DETECTOR}),
        pretraining=dict(iterations=4),
        labels=[50],
        seeds=dict(pretraining=1, detector=1),
        pictures=1,
    )
    (tmp_path / 'plan.yaml').write_text(json.dumps(plan))
    run = partial(program, str(tmp_path / 'plan.yaml'), str(tmp_path / 'w'))
    done = forked(run, tmp_path, env=environment(str(tmp_path / 'demo')))
    assert done.returncode == 0, done.stderr[-3000:]
    printed = done.stdout
    report = json.loads((tmp_path / 'w' / 'report.json').read_text())
    assert report['verdict'] in printed and len(report['tables'][0]['rows']) == 2
    assert report['costs']['ALFM']['iterations'] == 4 and report['costs']['ALFM']['memory_mb'] > 100
    stage = next((tmp_path / 'w' / 'stages').glob('detector_alfm_*'))
    assert 'matched, 0 expected-missing, 0 unexpected' in (stage / 'log.txt').read_text()
    assert not list(stage.rglob('*.pth'))  # the predictions are what is kept
