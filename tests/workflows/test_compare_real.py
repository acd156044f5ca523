"""The engine with real training, at the smallest size: what the stubs of test_compare.py replace fits together."""

import json

import pytest

from helpers import write_noise_coco
from odis_mm.cli.compare import main

pytestmark = pytest.mark.slow


def test_from_the_command_line_to_the_report(tmp_path, capsys):
    write_noise_coco(tmp_path / 'data', (('train', 12), ('val', 4)))
    plan = dict(
        data=dict(root='data'),
        starts={'random weights': {}, 'ALFM': dict(recipe='alfm_demo', options={'train_dataloader.batch_size': 6})},
        detector=dict(size=48, iterations=4, options={'train_dataloader.batch_size': 2}),
        pretraining=dict(iterations=4),
        labels=[50],
        seeds=dict(pretraining=1, detector=1),
        pictures=1,
    )
    (tmp_path / 'plan.yaml').write_text(json.dumps(plan))
    main([str(tmp_path / 'plan.yaml'), '--work-dir', str(tmp_path / 'w'), '--jobs', '1'])
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / 'w' / 'report.json').read_text())
    assert report['verdict'] in printed and len(report['tables'][0]['rows']) == 2
    assert report['costs']['ALFM']['iterations'] == 4 and report['costs']['ALFM']['memory_mb'] > 100
    stage = next((tmp_path / 'w' / 'stages').glob('detector_alfm_*'))
    assert 'matched, 0 expected-missing, 0 unexpected' in (stage / 'log.txt').read_text()
    assert not list(stage.rglob('*.pth'))  # the predictions are what is kept
