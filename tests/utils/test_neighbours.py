"""Common neighbours in an environment do not keep the package from being imported."""

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from types import SimpleNamespace

import pytest

from odis_mm.utils import neighbours

IMPORT = 'import odis_mm; from mmpretrain.registry import MODELS; assert "ObjectViT" in MODELS.module_dict'


def installed(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@pytest.mark.parametrize('found, skipped', [('5.24.0', True), ('4.57.1', False), (None, False)])
def test_multimodal_models_are_left_out_of_new_transformers_only(monkeypatch, found, skipped):
    def version_of(name):
        if found is None:
            raise PackageNotFoundError(name)
        return found

    modules = {name: module for name, module in sys.modules.items() if not name.startswith('mmpretrain.models')}
    monkeypatch.setattr(neighbours, 'version', version_of)
    monkeypatch.setattr(neighbours, 'sys', SimpleNamespace(modules=modules))
    assert neighbours.skip_multimodal() is skipped
    assert ('mmpretrain.models.multimodal' in modules) is skipped


@pytest.mark.parametrize('name', ['transformers', 'lightning', 'ultralytics'])
def test_import_beside_a_neighbour(name):
    if installed(name) is None:
        pytest.skip(f'{name} is not installed (pip install odis_mm[test-neighbours])')
    done = subprocess.run([sys.executable, '-c', f'import {name}; {IMPORT}'], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    done = subprocess.run([sys.executable, '-c', IMPORT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
