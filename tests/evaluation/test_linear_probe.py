"""The linear probe: mmpretrain's own classifier on an exported, frozen backbone."""

import json

import pytest
import torch
from mmpretrain.registry import MODELS

from helpers import ARCH, make_vit, noisy_vit
from odis_mm import apis
from odis_mm.config import check_classifier
from odis_mm.recipes.starting import follow_named
from odis_mm.transfer import CheckpointError, read_checkpoint, save_backbone
from odis_mm.utils.errors import ConfigError

OPTIONS = {
    'model.backbone.img_size': 32,
    'model.backbone.patch_size': 8,
    'model.backbone.frozen_stages': 3,
    'model.head.in_channels': 32,
    'model.head.num_classes': 3,
    'model.head.topk': (1,),
    'val_evaluator.topk': (1,),
    'train_dataloader.dataset.pipeline.1.scale': 32,
    'val_dataloader.dataset.pipeline.1.scale': 36,
    'val_dataloader.dataset.pipeline.2.crop_size': 32,
    'train_dataloader.batch_size': 14,
    'train_dataloader.num_workers': 0,
    'val_dataloader.num_workers': 0,
    'train_cfg.max_epochs': 12,
    'train_cfg.val_interval': 12,
    'default_hooks.checkpoint.interval': 12,
    'optim_wrapper.optimizer.lr': 1.0,
}


def train(checkpoint, work_dir):
    cfg = apis.load_config('linear_probe/vits_in1k', OPTIONS)
    cfg.model.backbone.update(arch=ARCH, init_cfg=dict(type='VerifiedPretrained', checkpoint=str(checkpoint)))
    return apis.train(cfg, work_dir=str(work_dir))


def test_only_the_head_learns(labelled_images, tmp_path, monkeypatch):
    monkeypatch.setenv('IMAGENET_ROOT', str(labelled_images))
    vit = noisy_vit()
    for name, parameter in vit.named_parameters():  # drawn small, its [CLS] would hardly see the image
        parameter.data *= 4 if name.startswith('layers') and parameter.ndim == 2 else 1
    save_backbone(tmp_path / 'a.pth', vit.state_dict())
    runner = train(tmp_path / 'a.pth', tmp_path / 'probe')
    exported = read_checkpoint(tmp_path / 'a.pth')
    after = runner.model.backbone.state_dict()
    assert all(torch.equal(after[name.removeprefix('backbone.')], value) for name, value in exported.items())
    assert {name for name, p in runner.model.named_parameters() if p.requires_grad} == {
        'head.fc.weight',
        'head.fc.bias',
    }
    scalars = next((tmp_path / 'probe').glob('*/vis_data/scalars.json')).read_text().splitlines()
    accuracy = next(json.loads(line)['accuracy/top1'] for line in scalars if 'accuracy/top1' in line)
    assert 50 < accuracy <= 100  # three classes of stripes


def test_images_are_normalised_as_the_file_tells(tmp_path):
    save_backbone(tmp_path / 'a.pth', make_vit().state_dict(), dict(mean=[10.0, 20.0, 30.0], std=[40.0, 50.0, 60.0]))
    cfg = apis.load_config('linear_probe/vits_in1k', OPTIONS)
    cfg.model.backbone.init_cfg.checkpoint = str(tmp_path / 'a.pth')
    (line,) = follow_named(cfg)
    assert 'mean 10, 20, 30 and std 40, 50, 60 from the file' in line
    image = torch.tensor([30, 20, 10], dtype=torch.uint8)[:, None, None].expand(3, 32, 32)  # BGR, as it is read
    preprocess = MODELS.build(cfg.model.data_preprocessor)
    assert preprocess(dict(inputs=[image], data_samples=None))['inputs'].abs().max() == 0


def test_folders_that_hold_other_classes_are_refused(tmp_path):
    cfg = apis.load_config('linear_probe/vits_in1k', OPTIONS)
    for part, classes in (('train', 'abc'), ('val', 'ac')):
        cfg[f'{part}_dataloader'].dataset.data_root = str(tmp_path)
        for name in classes:
            (tmp_path / part / name).mkdir(parents=True)
    with pytest.raises(ConfigError, match='different classes .b in one of them'):
        apis.train(cfg, work_dir=str(tmp_path / 'probe'))


@pytest.mark.parametrize(
    'changed, wanted',
    [
        ({'model.head.num_classes': 2}, 'num_classes=2, and there are 3 class folders: set it to 3'),
        ({'val_evaluator.topk': (1, 5)}, 'topk=.1, 5., and there are 3 classes: set it to .1,.'),
    ],
)
def test_more_classes_than_the_head_has_and_more_counted_than_there_are(tmp_path, changed, wanted):
    cfg = apis.load_config('linear_probe/vits_in1k', OPTIONS)
    for part in ('train', 'val'):
        cfg[f'{part}_dataloader'].dataset.data_root = str(tmp_path)
        for name in 'abc':
            (tmp_path / part / name).mkdir(parents=True)
    check_classifier(cfg)
    cfg.merge_from_dict(changed)
    with pytest.raises(ConfigError, match=wanted):
        apis.train(cfg, work_dir=str(tmp_path / 'probe'))


@pytest.mark.parametrize('arch, depth', [('large', 24), (ARCH, 3)])
def test_blocks_that_would_be_trained_are_told(arch, depth):
    cfg = apis.load_config('linear_probe/vits_in1k', {'model.backbone.frozen_stages': 2})
    cfg.model.backbone.arch = arch
    (line,) = check_classifier(cfg)
    assert line.endswith(f'for a linear probe set it to {depth}')
    cfg.model.backbone.frozen_stages = depth
    assert not check_classifier(cfg)
    cfg.model.backbone.frozen_stages = depth + 1
    with pytest.raises(ConfigError, match=f'set it to {depth}'):
        check_classifier(cfg)


def test_images_that_the_probe_reads_otherwise_are_told(tmp_path):
    save_backbone(tmp_path / 'a.pth', make_vit().state_dict(), dict(reading=dict(channels=3, window=[0, 4095])))
    cfg = apis.load_config('linear_probe/vits_in1k', OPTIONS)
    cfg.model.backbone.init_cfg.checkpoint = str(tmp_path / 'a.pth')
    (line,) = follow_named(cfg)
    assert line.startswith('mind: ') and '4095' in line


def test_a_backbone_of_another_shape_is_refused(labelled_images, tmp_path, monkeypatch):
    monkeypatch.setenv('IMAGENET_ROOT', str(labelled_images))
    save_backbone(tmp_path / 'a.pth', make_vit(arch=dict(ARCH, num_layers=2)).state_dict())
    with pytest.raises(CheckpointError, match='depth 2 instead of 3'):
        train(tmp_path / 'a.pth', tmp_path / 'probe')
