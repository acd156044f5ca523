"""A detector is evaluated only with its own heads: anything else ends in one sentence, not in AP 0.0."""

import re

import pytest
import torch

pytest.importorskip('mmdet')
pytest.importorskip('mmcv._ext')

from odis_mm import apis
from odis_mm.cli import train as cli
from odis_mm.config import load_config


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """The weights of a detector of other classes, those of its backbone alone, and a checkpoint of pretraining."""
    from mmdet.registry import MODELS
    from mmengine.registry import init_default_scope

    folder = tmp_path_factory.mktemp('files')
    init_default_scope('mmdet')
    options = {'model.roi_head.bbox_head.num_classes': 3, 'model.roi_head.mask_head.num_classes': 3}
    state = MODELS.build(load_config('mask-rcnn_demo', options).model).state_dict()
    torch.save(dict(state_dict=state, meta={}), folder / 'three.pth')
    backbone = {key: value for key, value in state.items() if key.startswith('backbone.')}
    torch.save(dict(state_dict=backbone, meta=dict(method='GTSA')), folder / 'backbone.pth')
    both = {**backbone, **{f'teacher.{key}': value for key, value in backbone.items()}}
    torch.save(dict(state_dict=both, meta={}, optimizer={}), folder / 'epoch_2.pth')
    return folder


@pytest.mark.parametrize(
    'name, told',
    [
        (
            'backbone.pth',
            r'is an exported backbone of GTSA and does not fit this MaskRCNN: \d+ of its \d+ tensors are not in the '
            r'file',
        ),
        (
            'epoch_2.pth',
            r'is a pretraining checkpoint and does not fit this MaskRCNN: \d+ of its \d+ tensors are not in the file',
        ),
        (
            'three.pth',
            r"is a detector's weights and does not fit .*fc_cls.weight is \[4, 256\] in the file, \[7, 256\] in the "
            r'model',
        ),
    ],
)
def test_heads_that_are_not_in_the_file_are_not_evaluated(name, told, files, demo, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('ODIS_DEMO_ROOT', demo)
    with pytest.raises(SystemExit) as stop:
        cli.test_main(['mask-rcnn_demo', str(files / name), '--work-dir', str(tmp_path)])
    said = capsys.readouterr()
    assert stop.value.code == 2 and 'AP' not in said.out
    assert re.search(told, said.err.strip().splitlines()[-1]), said.err[-600:]


def test_finetuning_with_other_classes_says_what_is_not_loaded(files, demo, tmp_path, monkeypatch):
    monkeypatch.setenv('ODIS_DEMO_ROOT', demo)
    options = {
        'load_from': str(files / 'three.pth'),
        'load_from_allow': ['roi_head.bbox_head.fc_cls.*', 'roi_head.mask_head.conv_logits.*'],
        'train_cfg.max_iters': 1,
        'param_scheduler': [],
        'train_dataloader.batch_size': 1,
        'train_dataloader.num_workers': 0,
        'val_dataloader.num_workers': 0,
        'val_cfg': None,
        'val_dataloader': None,
        'val_evaluator': None,
        'default_hooks.checkpoint.save_last': False,
    }
    apis.train('mask-rcnn_demo', work_dir=str(tmp_path), options=options)
    (log,) = tmp_path.glob('*/*.log')
    told = [line.partition('three.pth: ')[2] for line in log.read_text().splitlines() if 'three.pth: ' in line]
    assert 'roi_head.bbox_head.fc_cls.weight: of another shape' in told and len(told) == 4
