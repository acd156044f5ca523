"""The doctor: each problem provoked and named alone, in environments that lack what it needs, and a healthy one left
alone."""

import re
import shlex
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch

import odis_mm.transfer
from helpers import environment, forked
from odis_mm import cli
from odis_mm.cli import doctor
from odis_mm.cli.doctor import Finding
from odis_mm.utils.environment import check_operators, detectors_lack_gpu
from odis_mm.utils.errors import ConfigError

HEALTHY = dict(mmengine='0.10.7', mmcv='2.1.0', mmpretrain='1.2.0', mmdet='3.3.0')


def problems(versions):
    return [finding for finding in doctor.packages(versions.get) if not finding.ok]


@pytest.mark.parametrize(
    'changes, told, remedy',
    [
        ({'onedl-mmcv': '2.3.0'}, 'side by side', 'pip uninstall -y mmcv onedl-mmcv'),
        ({'mmcv-lite': '2.1.0'}, 'side by side', 'mmcv-lite'),
        ({'mmengine': None}, 'mmengine is not installed', 'pip install mmengine'),
        ({'mmcv': '2.2.0'}, 'refuses mmcv 2.2.0', 'mmcv<2.2'),
    ],
)
def test_packages(changes, told, remedy):
    assert not problems(HEALTHY)
    found = problems({**HEALTHY, **changes})
    assert len(found) == 1 and told in found[0].what and remedy in found[0].remedy
    onedl = {f'onedl-{"mmdetection" if name == "mmdet" else name}': '9.9' for name in HEALTHY}
    assert not problems(onedl)
    del onedl['onedl-mmpretrain']
    assert [finding.remedy for finding in problems(onedl)] == ['pip install onedl-mmpretrain']  # of the family in use


def test_versions():
    assert doctor.torch_pair('2.10.0+cpu', '0.25.0').ok and not doctor.torch_pair('2.10.0', '0.24.1').ok
    assert "'torchvision==0.25.*'" in doctor.torch_pair('2.10.0', '0.24.1').remedy
    assert not doctor.torch_pair('2.1.0', None).ok
    assert doctor.setup_tools({'setuptools': '79.0.1'}.get).ok
    assert not doctor.setup_tools({'setuptools': '82.0.0'}.get).ok


@pytest.mark.parametrize('detectors', [True, False])
def test_operators_that_are_missing_are_a_problem_of_detectors(monkeypatch, detectors):
    monkeypatch.setitem(sys.modules, 'mmcv._ext', None)
    monkeypatch.setattr(doctor, 'installed', {'onedl-mmcv': '2.3.6', 'mmdet': '3.3.0' if detectors else None}.get)
    found = list(doctor.operators())[-1]
    assert found.ok != detectors and 'no compiled operators' in found.what
    assert found.remedy.endswith('--no-build-isolation onedl-mmcv==2.3.6')


# An environment that lacks some packages, or has them in other versions: what Python runs first
CUSTOMIZED = """
import importlib.metadata, sys

hidden, versions = {hidden!r}, {versions!r}
real = importlib.metadata.version

def version(name):
    if versions.get(name, '') is None:
        raise importlib.metadata.PackageNotFoundError(name)
    return versions.get(name) or real(name)

importlib.metadata.version = version

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in hidden:
            raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)

sys.meta_path.insert(0, Hide())
"""


def report(folder, module, **customized):
    (folder / 'sitecustomize.py').write_text(CUSTOMIZED.format(**customized))
    env = environment()
    env['PYTHONPATH'] = f'{folder}:{env["PYTHONPATH"]}'
    done = subprocess.run(
        [sys.executable, '-m', *module, '--no-run', '--work-dir', 'runs'],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
    )
    assert not done.stderr, done.stderr
    return done.returncode, done.stdout.splitlines()


@pytest.mark.parametrize(
    'hidden, versions, told, remedy',
    [
        ('cv2', {}, 'cv2 is not installed', 'pip install opencv-python-headless'),
        (
            'mmengine',
            {'mmengine': None, 'onedl-mmengine': None},
            'mmengine is not installed',
            r'pip install (onedl-)?mmengine',
        ),
        (
            'mmcv',
            {'mmcv': None, 'onedl-mmcv': None},
            'mmcv is not installed',
            r'pip install --no-build-isolation (onedl-)?mmcv',
        ),
        ('torch', {'torch': None}, 'torch is not installed', "pip install 'torch>=2.1,<2.14' torchvision"),
        (
            '',
            {'torch': '2.10.0', 'torchvision': '0.24.1'},
            'torch 2.10.0, torchvision 0.24.1, which was built for another torch',
            r"pip install 'torchvision==0\.25\.\*'",
        ),
    ],
)
def test_what_an_environment_lacks_is_named_alone(tmp_path, hidden, versions, told, remedy):
    module = ['odis_mm.doctor'] if hidden in ('mmengine', 'mmcv') else ['odis_mm', 'doctor']  # both ways to start it
    code, lines = report(tmp_path, module, hidden=[hidden], versions=versions)
    at = [i for i, line in enumerate(lines) if line.startswith('PROBLEM ')]
    assert code == 1 and [lines[i] for i in at] == [f'PROBLEM {told}'], lines
    assert re.fullmatch(f'        fix: {remedy}', lines[at[0] + 1]) and lines[-1] == '1 problem found'


def test_a_package_that_does_not_load_is_named_by_its_own_error(tmp_path):
    (tmp_path / 'cv2.py').write_text('raise ImportError("libGL.so.1: cannot open shared object file")')
    code, lines = report(tmp_path, ['odis_mm', 'doctor'], hidden=[], versions={})
    told = [line for line in lines if line.startswith(('PROBLEM', '        fix'))]
    assert code == 1 and told == [
        'PROBLEM cv2 cannot be imported (ImportError: libGL.so.1: cannot open shared object file)',
        '        fix: pip install --force-reinstall --no-deps opencv-python-headless',
    ]


def test_code_in_a_checkpoint_is_seen(tmp_path, monkeypatch):
    assert doctor.loading(tmp_path).ok
    # the fault: a reader that runs what a file tells it to
    monkeypatch.setattr(odis_mm.transfer, 'load_local', lambda path: torch.load(path, weights_only=False))
    assert not doctor.loading(tmp_path).ok


def test_a_folder_without_permission(tmp_path):
    (tmp_path / 'file').touch()
    assert doctor.writable(str(tmp_path / 'new')).ok
    found = doctor.writable(str(tmp_path / 'file'))
    assert not found.ok and 'cannot write' in found.what and '--work-dir' in found.remedy


@pytest.fixture
def forked_trials(monkeypatch, tmp_path):
    """The trials are forked from a process that has imported everything."""

    def run(command, env, **_):
        assert command[:3] == [sys.executable, '-m', 'odis_mm']
        return forked(partial(cli.main, command[3:]), tmp_path, env=env)

    monkeypatch.setattr(doctor, 'subprocess', SimpleNamespace(run=run))


@pytest.mark.slow
def test_a_healthy_installation_is_left_alone(tmp_path, capsys, forked_trials):
    doctor.main(['--work-dir', str(tmp_path)])
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == 'no problem found' and not [line for line in said if not line.startswith('ok ')][:-1]
    assert [line for line in said if line.endswith('a few iterations run')] == [
        'ok      pretraining: a few iterations run',
        'ok      a detector: a few iterations run',
    ]


@pytest.mark.slow
def test_a_run_that_fails_is_told_with_a_command_that_shows_it(tmp_path, monkeypatch, forked_trials):
    config, options = doctor.TRIALS['pretraining']
    monkeypatch.setattr(doctor, 'TRIALS', {'pretraining': (config, [*options, 'model.backbone.archh=3'])})
    (found,) = doctor.trials(tmp_path, detector=True)
    assert not found.ok and found.what.startswith('pretraining: failed: error: --cfg-options model.backbone.archh')
    for line in found.remedy.split(' && '):
        words = shlex.split(line, comments=True)
        at = words.index(sys.executable)
        assert words[at + 1 : at + 3] == ['-m', 'odis_mm']
        env = environment(**dict(word.split('=', 1) for word in words[:at]))
        done = forked(partial(cli.main, words[at + 3 :]), tmp_path, env=env)
    assert 'Traceback' in done.stderr and "has no key 'archh'" in done.stderr, done.stderr
    assert list(tmp_path.rglob('instances_train2017.json'))


def test_operators_for_cpus_alone_are_a_problem_of_detectors_on_gpus(monkeypatch):
    assert list(doctor.operators())[-1].what == 'mmcv operators are there' and not detectors_lack_gpu()
    check_operators()
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr('mmcv.ops.get_compiling_cuda_version', lambda: 'not available')
    found = list(doctor.operators())[-1]
    assert not found.ok and 'for CPUs alone' in found.what
    assert (
        found.remedy.startswith('FORCE_CUDA=1 pip install --no-cache-dir --force-reinstall') and 'nvcc' in found.remedy
    )
    with pytest.raises(ConfigError, match='compiled for CPUs alone.*CUDA_VISIBLE_DEVICES='):
        check_operators('cuda:1')
    check_operators('cpu')
    monkeypatch.setattr('mmcv.ops.get_compiling_cuda_version', lambda: '12.8')
    assert list(doctor.operators())[-1].ok
    check_operators()


def test_report_and_exit_code(monkeypatch, capsys):
    findings = [Finding(True, 'fine'), Finding(False, 'wrong', 'a command')]
    monkeypatch.setattr(doctor, 'examine', lambda *args: iter(findings[:1]))
    doctor.main([])
    assert capsys.readouterr().out.splitlines() == ['ok      fine', 'no problem found']
    monkeypatch.setattr(doctor, 'examine', lambda *args: iter(findings))
    with pytest.raises(SystemExit) as stop:
        doctor.main([])
    assert stop.value.code == 1
    assert capsys.readouterr().out.splitlines() == [
        'ok      fine',
        'PROBLEM wrong',
        '        fix: a command',
        '1 problem found',
    ]
