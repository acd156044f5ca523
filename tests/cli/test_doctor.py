"""The doctor: each finding provoked, and a healthy machine left alone."""

import pytest

from odis_mm.cli import doctor


def findings(versions):
    return [finding for finding in doctor.packages(versions.get) if not finding.ok]


HEALTHY = dict(mmengine='0.10.7', mmcv='2.1.0', mmpretrain='1.2.0', mmdet='3.3.0')


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
    assert not findings(HEALTHY)
    found = findings({**HEALTHY, **changes})
    assert len(found) == 1 and told in found[0].what and remedy in found[0].remedy
    assert not findings({f'onedl-{"mmdetection" if name == "mmdet" else name}': '9.9' for name in HEALTHY})


def test_versions():
    assert doctor.torch_pair('2.10.0+cpu', '0.25.0').ok and not doctor.torch_pair('2.10.0', '0.24.1').ok
    assert "'torchvision==0.25.*'" in doctor.torch_pair('2.10.0', '0.24.1').remedy
    assert not doctor.torch_pair('2.1.0', None).ok
    assert (
        doctor.setup_tools({'setuptools': '79.0.1'}.get).ok and not doctor.setup_tools({'setuptools': '82.0.0'}.get).ok
    )


def test_code_in_a_checkpoint_is_seen(tmp_path, monkeypatch):
    assert doctor.loading(tmp_path).ok
    import torch

    from odis_mm import apis

    monkeypatch.setattr(apis, '_load_local', lambda path: torch.load(path, weights_only=False))
    assert not doctor.loading(tmp_path).ok


def test_a_folder_without_permission(tmp_path):
    (tmp_path / 'file').touch()
    assert doctor.writable(str(tmp_path / 'new')).ok
    found = doctor.writable(str(tmp_path / 'file'))
    assert not found.ok and 'cannot write' in found.what and '--work-dir' in found.remedy


def test_report_and_exit_code(tmp_path, monkeypatch, capsys):
    doctor.main(['--no-run', '--work-dir', str(tmp_path)])
    assert 'nothing stands in the way' in capsys.readouterr().out
    monkeypatch.setattr(
        doctor, 'examine', lambda *args: iter([doctor.Finding(True, 'fine'), doctor.Finding(False, 'sick', 'a cure')])
    )
    with pytest.raises(SystemExit) as stop:
        doctor.main([])
    assert stop.value.code == 1
    assert capsys.readouterr().out.splitlines() == ['ok  fine', 'BAD sick', '      mend: a cure', '1 finding to mend']
