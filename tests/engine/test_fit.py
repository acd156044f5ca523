"""Files that are not what a command needs: one sentence that says what they are, before anything is loaded or
trained."""

import re

import pytest
import torch
from torch import nn

from helpers import TINY_RUN, make_odis
from odis_mm import apis
from odis_mm.cli import train as cli
from odis_mm.cli.replay import replay_main
from odis_mm.config import parse_options
from odis_mm.engine.fit import check_fit, check_pretrained, kind_of
from odis_mm.utils.errors import CheckpointError


class Detector(nn.Module):
    def __init__(self, classes: int = 3):
        super().__init__()
        self.backbone, self.rpn_head, self.roi_head = nn.Linear(2, 2), nn.Linear(2, 4), nn.Linear(2, classes)


def training(model: nn.Module) -> dict:
    return dict(
        state_dict=model.state_dict(), meta=dict(epoch=1, iter=4), optimizer=dict(param_groups=[]), message_hub={}
    )


def test_files_are_told_apart():
    odis = make_odis()
    exported = {f'backbone.{key}': value for key, value in odis.teacher['backbone'].state_dict().items()}
    assert kind_of(training(odis)) == 'a pretraining checkpoint'
    assert kind_of(dict(state_dict=exported, meta=dict(method='ODIS'))) == 'an exported backbone of ODIS'
    assert kind_of(training(Detector())) == "a detector's checkpoint"
    assert kind_of(Detector().state_dict()) == "a detector's weights"
    assert kind_of({'blocks.0.norm1.weight': torch.zeros(2)}) == 'a file of another library'
    assert kind_of([1]) == kind_of(dict(a=1)) == 'a file without tensors by name'


def test_missing_and_misshapen_tensors_are_named():
    model = Detector()
    assert check_fit(model, dict(state_dict=model.state_dict()), 'x.pth', 'end.') == []
    backbone = {key: value for key, value in model.state_dict().items() if key.startswith('backbone.')}
    with pytest.raises(CheckpointError) as caught:
        check_fit(model, dict(state_dict=backbone), 'x.pth', 'end.')
    assert str(caught.value) == (
        'x.pth is an exported backbone and does not fit this Detector: 4 of its 6 tensors are not in the file '
        '(rpn_head.weight, rpn_head.bias, roi_head.weight, roi_head.bias); end.'
    )
    with pytest.raises(
        CheckpointError, match=r'roi_head.weight is \[80, 2\] in the file, \[3, 2\] in the model; roi_head.bias'
    ):
        check_fit(model, dict(state_dict=Detector(80).state_dict()), 'x.pth', 'end.')
    left = check_fit(
        model, dict(state_dict={**Detector(80).state_dict(), 'mask.w': torch.zeros(1)}), 'x', 'e', ['roi_head.*']
    )
    assert left == [
        'roi_head.weight: of another shape',
        'roi_head.bias: of another shape',
        'mask.w: in the file, not in the model',
    ]
    assert check_fit(model, {f'module.{key}': value for key, value in model.state_dict().items()}, 'x', 'e') == []


def test_pretrained_that_loads_nothing_is_refused(tmp_path):
    model, path = Detector(), str(tmp_path / 'x.pth')
    config = dict(type='Detector', backbone=dict(type='Linear', init_cfg=dict(type='Pretrained', checkpoint=path)))
    torch.save(model.state_dict(), path)  # under backbone.*, where mmengine looks for the backbone's own names
    with pytest.raises(
        CheckpointError, match="model.backbone.init_cfg: .*2 of its 2 tensors .*type='VerifiedPretrained'"
    ):
        check_pretrained(model, config)
    config['backbone']['init_cfg']['prefix'] = 'backbone'
    check_pretrained(model, config)
    config['backbone']['init_cfg'] = dict(type='Pretrained', checkpoint='torchvision://resnet50')
    check_pretrained(model, config)


def test_a_replay_of_something_else_is_refused(tmp_path, capsys):
    exported = {f'backbone.{key}': value for key, value in make_odis().teacher['backbone'].state_dict().items()}
    torch.save(dict(state_dict=exported, meta={}), tmp_path / 'export.pth')
    torch.save(dict(batch={}, random={}, iteration=3), tmp_path / 'batch.pth')
    for arguments, told in (
        (['export.pth'], 'is an exported backbone, and not a saved batch'),
        (
            ['batch.pth', '--checkpoint', str(tmp_path / 'export.pth')],
            'is an exported backbone and does not fit this ODIS',
        ),
    ):
        with pytest.raises(SystemExit) as stop:
            replay_main(['odis_demo', str(tmp_path / arguments[0]), *arguments[1:]])
        assert stop.value.code == 2 and told in capsys.readouterr().err


@pytest.fixture
def files(tmp_path):
    odis = make_odis()
    exported = {f'backbone.{key}': value for key, value in odis.teacher['backbone'].state_dict().items()}
    torch.save(dict(state_dict=exported, meta=dict(method='ODIS')), tmp_path / 'export.pth')
    torch.save(training(odis), tmp_path / 'other.pth')
    torch.save({'blocks.0.norm1.weight': torch.zeros(2)}, tmp_path / 'timm.pth')
    return tmp_path


@pytest.mark.parametrize(
    'arguments, told',
    [
        (
            ['--resume', 'export.pth'],
            'export.pth is an exported backbone of ODIS, which holds no optimizer and no iteration.*--init FILE',
        ),
        (
            ['--resume', 'other.pth'],
            'other.pth is a pretraining checkpoint and does not fit this ODIS: .*another shape',
        ),
        (['--resume', 'timm.pth'], 'timm.pth is a file of another library, which holds no optimizer'),
        (['--resume', 'empty'], 'there is no checkpoint in .*empty; name the file or folder, or say --resume auto'),
        (['--resume'], 'there is no checkpoint in .*out; name the file or folder, or say --resume auto'),
        (
            ['load_from=export.pth'],
            'export.pth is an exported backbone of ODIS and does not fit this ODIS: .*--init FILE',
        ),
        (['load_from=timm.pth'], 'timm.pth is a file of another library and does not fit this ODIS: .*--init FILE'),
    ],
)
def test_a_wrong_file_ends_in_one_sentence(arguments, told, files, demo, monkeypatch, capsys):
    monkeypatch.setenv('ODIS_DEMO_ROOT', demo)
    monkeypatch.chdir(files)
    (files / 'empty').mkdir()
    options = [argument for argument in arguments if '=' in argument]
    command = ['odis_demo', *(argument for argument in arguments if '=' not in argument), '--work-dir', 'out']
    with pytest.raises(SystemExit) as stop:
        cli.train_main([*command, '--cfg-options', *TINY_RUN, *options])
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2 and said.startswith('error: ')
    assert re.search(told, said), said


SHORT = [*TINY_RUN, 'param_scheduler=[]']


def test_a_folder_means_its_newest_checkpoint(files, demo, tmp_path, monkeypatch):
    monkeypatch.setenv('ODIS_DEMO_ROOT', demo)
    first = tmp_path / 'first'
    apis.train('odis_demo', work_dir=str(first), options=parse_options([*SHORT, 'train_cfg.max_epochs=1']))
    runner = apis.train('odis_demo', work_dir=str(tmp_path / 'second'), resume=str(first), options=parse_options(SHORT))
    assert runner._load_from == str(first / 'epoch_1.pth') and runner.epoch == 2
    auto = apis.train(
        'odis_demo',
        work_dir=str(tmp_path / 'third'),
        resume='auto',
        options=parse_options([*SHORT, 'train_cfg.max_epochs=1']),
    )
    assert auto.epoch == 1, 'auto begins at the beginning where there is nothing'
