"""The notebooks run as they are, from a wheel, in a folder whose name has blanks and umlauts."""

import json
import runpy

import pytest

import odis_mm
from helpers import ROOT, environment, fork_commands, forked

pytest.importorskip('mmcv._ext')


def run_cells() -> None:
    fork_commands()
    runpy.run_path('cells.py', run_name='__main__')
    assert not odis_mm.__file__.startswith(str(ROOT / 'odis_mm'))


@pytest.mark.slow
@pytest.mark.parametrize('notebook', sorted((ROOT / 'docs' / 'tutorials').glob('*.ipynb')), ids=lambda path: path.stem)
def test_notebook_runs(notebook, installed_wheel, tmp_path):
    cells = [cell for cell in json.loads(notebook.read_text())['cells'] if cell['cell_type'] == 'code']
    assert all(not cell['outputs'] for cell in cells), 'outputs are not kept in the repository'
    folder = tmp_path / 'my dätä folder'
    folder.mkdir()
    (folder / 'cells.py').write_text('\n'.join(''.join(cell['source']) for cell in cells) + '\n')
    env = environment(PYTHONPATH=str(installed_wheel))
    env.pop('ODIS_DEMO_ROOT')
    done = forked(run_cells, tmp_path, cwd=folder, env=env, package=installed_wheel)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-3000:]
    if 'compare' in notebook.stem:
        assert '| found objects |' in (folder / 'runs' / 'compare' / 'report.md').read_text(), said
        assert json.loads((folder / 'objects.json').read_text())['annotations']
    else:
        assert (folder / 'runs' / 'predictions' / 'predictions.json').is_file(), said
        assert list((folder / 'runs' / 'predictions' / 'vis').iterdir())
