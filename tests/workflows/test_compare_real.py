"""The engine with real training, at the smallest size: what the stubs of test_compare.py replace fits together.

The file is also the program that the test starts: the command that measures is a process of its own as for users, the
trainings are forked from this interpreter, which has imported everything.
"""

import gc
import importlib
import json
import os
import subprocess
import sys
import traceback
from types import SimpleNamespace

import pytest

from helpers import environment, run_command_line, write_noise_coco

pytestmark = pytest.mark.slow


def program(plan: str, work_dir: str) -> None:
    import mmengine.runner.runner

    import odis_mm
    from odis_mm import cli
    from odis_mm.workflows import stages

    odis_mm.register()
    for name in ('compare', 'train'):
        importlib.import_module(cli.COMMANDS[name].module)
    importlib.import_module('mmdet.models')
    mmengine.runner.runner.collect_env = lambda: {}  # seconds a run, and nothing but a report
    popen = subprocess.Popen

    def start(words, *, stdout, env, **others):
        if 'regions' in words:
            return popen(words, stdout=stdout, env=env, **others)
        pid = os.fork()
        if pid:
            return SimpleNamespace(pid=pid, returncode=None)
        code = 70
        try:
            os.dup2(stdout.fileno(), 1)
            os.dup2(stdout.fileno(), 2)
            os.environ.update(env)
            cli.main(words[words.index('odis_mm') + 1 :])
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        except Exception:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    stages.subprocess = SimpleNamespace(Popen=start, STDOUT=subprocess.STDOUT, DEVNULL=subprocess.DEVNULL)
    gc.freeze()  # else each process's first collection would copy all that they share
    cli.main(['compare', plan, '--work-dir', work_dir, '--jobs', '1'])


def test_from_the_command_line_to_the_report(tmp_path):
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
    command = [sys.executable, __file__, tmp_path / 'plan.yaml', tmp_path / 'w']
    printed = run_command_line(command, tmp_path, environment(str(tmp_path / 'demo')))
    report = json.loads((tmp_path / 'w' / 'report.json').read_text())
    assert report['verdict'] in printed and len(report['tables'][0]['rows']) == 2
    assert report['costs']['ALFM']['iterations'] == 4 and report['costs']['ALFM']['memory_mb'] > 100
    stage = next((tmp_path / 'w' / 'stages').glob('detector_alfm_*'))
    assert 'matched, 0 expected-missing, 0 unexpected' in (stage / 'log.txt').read_text()
    assert not list(stage.rglob('*.pth'))  # the predictions are what is kept


if __name__ == '__main__':
    program(*sys.argv[1:])
