"""The card beside an export, and the check that a detector starts from the file."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.logging import MMLogger
from torch import nn

from helpers import make_vit, odis_runner
from odis_mm.transfer import CheckpointError, fingerprint, read_meta, save_backbone
from odis_mm.utils.environment import command_line

pytest.importorskip('mmdet')
from odis_mm.detection import DetectorInit


def test_every_export_has_its_card(tmp_path):
    runner = odis_runner(
        tmp_path,
        cfg=dict(train_dataloader=dict(dataset=dict(type='ObjectDataset', data_root='data/coco', data_fraction=0.5))),
    )
    runner.message_hub.update_info('frozen_metrics', {'regions/box_pool': 43.21})
    runner.train()
    cards = sorted(path.name for path in tmp_path.glob('*.md'))
    assert cards == ['epoch_2_backbone.md']  # that of the removed checkpoint went with it
    text = (tmp_path / cards[0]).read_text()
    lines = dict(re.findall(r'^- \*\*(.+?)\*\*: (.+)$', text, re.MULTILINE))
    assert lines['method'] == 'ODIS'
    assert lines['backbone'].startswith('ObjectViT of 3 blocks, 32 channels, patches of 8 px; the teacher, ')
    assert re.fullmatch(r'8 of 8 iterations \(2 epochs\) of 1 images, seed \d+', lines['training'])
    assert lines['data'] == '4 images, folder data/coco, 0.5 of all images'
    assert lines['measured so far'] == 'regions/box_pool 43.2' and 'config' not in lines, 'it was built by hand'
    assert f'torch {torch.__version__}' in lines['versions'] and 'mmpretrain' in lines['versions']
    assert lines['command'] == f'`{command_line()}`'
    assert lines['fingerprint of the weights'] == fingerprint(runner.model.branch('teacher').state_dict())
    meta = read_meta(tmp_path / 'epoch_2_backbone.pth')
    assert (meta['num_heads'], meta['iteration'], meta['epoch']) == (4, 8, 2) and 'every_image_of' not in meta


def test_a_card_tells_that_a_whole_folder_was_used(tmp_path):
    odis_runner(tmp_path, cfg=dict(train_dataloader=dict(dataset=dict(type='ObjectDataset', data_root='p')))).train()
    assert '- **data**: 4 images, every image of the folder p\n' in (tmp_path / 'epoch_2_backbone.md').read_text()
    assert read_meta(tmp_path / 'epoch_2_backbone.pth')['every_image_of'] == str(Path('p').absolute())


@pytest.mark.parametrize('program', ['bin/odis-mm', 'lib/odis_mm/__main__.py', 'Scripts/odis-mm.exe'])
def test_a_card_tells_the_command_as_it_is_typed(program, monkeypatch):
    monkeypatch.setattr(sys, 'argv', [program, 'pretrain', '--data', 'my photos'])
    assert command_line() == "odis-mm pretrain --data 'my photos'"
    monkeypatch.setattr(sys, 'argv', ['tools/train.py', 'odis_demo'])
    monkeypatch.setattr(sys, 'orig_argv', ['/usr/bin/python3', 'tools/train.py', 'odis_demo'])
    assert command_line() == 'python3 tools/train.py odis_demo'


def test_a_fingerprint_sees_every_bit():
    state = make_vit().state_dict()
    again = {name: state[name].clone() for name in reversed(state)}
    assert fingerprint(state) == fingerprint(again) and re.fullmatch('[0-9a-f]{12}', fingerprint(state))
    again['ln1.bias'][3] += 1e-7
    assert fingerprint(state) != fingerprint(again)
    renamed = {name.replace('ln1', 'ln9'): value for name, value in state.items()}
    assert fingerprint(state) != fingerprint(renamed)


def detector(backbone, init_cfg=None, **kwargs):
    return SimpleNamespace(
        **{
            **dict(
                model=nn.ModuleDict(dict(backbone=backbone)),
                cfg=dict(model=dict(backbone=dict(init_cfg=init_cfg))),
                logger=MMLogger.get_current_instance(),
                iter=0,
                _load_from=None,
            ),
            **kwargs,
        }
    )


def test_a_detector_that_lost_its_weights_is_stopped(tmp_path, caplog, monkeypatch):
    said = []
    monkeypatch.setattr(MMLogger.get_current_instance(), 'info', said.append)
    vit = make_vit()
    save_backbone(tmp_path / 'a.pth', vit.state_dict())
    init_cfg = dict(type='VerifiedPretrained', checkpoint=str(tmp_path / 'a.pth'))
    DetectorInit().before_train(detector(vit, init_cfg))
    mark = fingerprint(vit.state_dict())
    equal = f'DetectorInit: the backbone equals {tmp_path / "a.pth"} in {len(vit.state_dict())} tensors'
    assert said[-1] == f'{equal}; fingerprint of the weights in the file {mark}'
    larger = make_vit(img_size=64)
    from odis_mm.transfer import load_backbone

    load_backbone(larger, tmp_path / 'a.pth')
    DetectorInit().before_train(detector(larger, init_cfg))  # positions were resampled: the same way here
    resized = f'{equal}, pos_embed brought to the size of the model; fingerprint of the weights in the file {mark}'
    assert said[-1] == resized and fingerprint(larger.state_dict()) != mark

    with torch.no_grad():
        vit.layers[1].ffn.layers[1].bias[0] += 1e-6  # as little as this
    for hook, config in (
        (DetectorInit(), init_cfg),
        (DetectorInit(), dict(init_cfg, type='Pretrained')),
        (DetectorInit(init_cfg['checkpoint']), None),
    ):
        with pytest.raises(
            CheckpointError, match=r'1 of \d+ backbone tensors differ from the file \(layers.1.ffn.layers.1.bias\)'
        ):
            hook.before_train(detector(vit, config))
    DetectorInit().before_train(detector(vit, init_cfg, iter=7, _load_from='epoch_1.pth'))  # resumed
    assert 'weights of the checkpoint epoch_1.pth; fingerprint of the backbone' in said[-1]
    DetectorInit().before_train(detector(vit, dict(type='Pretrained', checkpoint='torchvision://resnet50')))
    assert 'not compared' in said[-1]
    DetectorInit().before_train(detector(vit))
    now = fingerprint(vit.state_dict())
    assert said[-1] == f'DetectorInit: random weights, as no checkpoint is named; fingerprint of the backbone {now}'
