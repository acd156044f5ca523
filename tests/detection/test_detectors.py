"""Detectors on a plain ViT: pyramids, layer decay, configs, and the way through mmdet's own runner."""

import copy
import json
import os
from pathlib import Path
from types import SimpleNamespace

import mmcv
import numpy as np
import pytest
import torch
from mmcv.cnn import build_norm_layer
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, DefaultScope, init_default_scope
from torch import nn

from helpers import ROOT

pytest.importorskip('mmdet')
pytest.importorskip('mmcv._ext')
from mmdet.registry import MODELS, TRANSFORMS
from mmengine.runner import Runner

import odis_mm  # noqa: F401
from odis_mm.detection import DetectorInit, ViTFeaturePyramid, ViTSimplePyramid, pyramid_strides
from odis_mm.detection.pyramid import LAYER_NORM
from odis_mm.models.linear import Linear
from odis_mm.transfer import CheckpointError, read_checkpoint, save_backbone

CONFIGS = ROOT / 'configs' / 'mask_rcnn'
TINY = dict(embed_dims=32, num_layers=4, num_heads=2, feedforward_channels=64)


@pytest.fixture(autouse=True)
def mmdet_scope():
    """Configs name mmdet's modules without a scope; other tests have theirs."""
    init_default_scope('mmdet')
    yield
    DefaultScope._instance_dict.clear()


def config(name, **options):
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    cfg.merge_from_dict(options)
    return cfg


def narrow(cfg):
    """The detector of a recipe with a ViT, its parts and wiring at 32 channels and for few proposals."""
    model = cfg.model
    model.backbone.update(arch=TINY, out_indices=[0, 1, 2, 3])
    model.neck[0].in_channels = 32
    model.neck[1].update(in_channels=[32] * 4, out_channels=32)
    model.rpn_head.update(in_channels=32, feat_channels=32)
    for part in (model.roi_head.bbox_roi_extractor, model.roi_head.mask_roi_extractor):
        part.out_channels = 32
    model.roi_head.bbox_head.update(in_channels=32, fc_out_channels=32)
    model.roi_head.mask_head.update(in_channels=32, conv_out_channels=32)
    model.train_cfg.rpn_proposal.update(nms_pre=100, max_per_img=50)
    model.train_cfg.rcnn.sampler.num = 32
    return cfg


def demo_model(**options):
    cfg = config('mask-rcnn_demo', **options)
    return MODELS.build(cfg.model), cfg


def detection_batch(size=96, n=2, masks=True):
    """Random images with two boxes each, as mmdet's data loader gives them."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    images, samples = [], []
    for i in range(n):
        images.append(torch.randint(256, (3, size, size), generator=torch.Generator().manual_seed(i)).to(torch.uint8))
        boxes = torch.tensor([[8.0, 8, 40, 48], [size / 2, size / 2, size - 8, size - 20]])
        sample = DetDataSample(
            metainfo=dict(
                img_shape=(size, size), ori_shape=(size, size), img_id=i, img_path='', scale_factor=(1.0, 1.0)
            )
        )
        sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([0, 3]))
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
        if masks:
            bitmap = np.zeros((2, size, size), np.uint8)
            for k, (x0, y0, x1, y1) in enumerate(boxes.int().tolist()):
                bitmap[k, y0:y1, x0:x1] = 1
            sample.gt_instances.masks = BitmapMasks(bitmap, size, size)
        samples.append(sample)
    return dict(inputs=images, data_samples=samples)


def losses_of(model, batch):
    model.train()
    data = model.data_preprocessor(batch, True)
    parsed, _ = model.parse_losses(model.loss(data['inputs'], data['data_samples']))
    return parsed


# ---- pyramids ------------------------------------------------------------------------------------


def test_strides():
    assert pyramid_strides(16, extra_levels=1) == [4, 8, 16, 32, 64]
    assert pyramid_strides(8, (2, 1, 0.5)) == [4, 8, 16]
    assert pyramid_strides(14) == [3.5, 7, 14, 28]


@pytest.mark.parametrize('patch', [8, 14, 16])
@pytest.mark.parametrize('kind', ['taps', 'simple'])
def test_levels_have_the_strides_they_claim(patch, kind):
    grid = (6, 10)
    maps = [torch.randn(2, 32, *grid) for _ in range(4)]
    if kind == 'taps':
        neck, strides = ViTFeaturePyramid(32), pyramid_strides(patch)
    else:
        neck, strides = ViTSimplePyramid(32, 16), pyramid_strides(patch, extra_levels=1)
    outs = neck(maps)
    assert len(outs) == len(strides)
    for out, stride in zip(outs, strides):
        assert out.shape[1] == (32 if kind == 'taps' else 16)
        assert [side * stride for side in out.shape[2:]] == [n * patch for n in grid] or stride == strides[-1]
    # a stride-1 tap passes untouched, the coarsest is its own map max-pooled
    if kind == 'taps':
        assert torch.equal(outs[2], maps[2]) and torch.equal(outs[3], torch.nn.functional.max_pool2d(maps[3], 2))


def test_simple_pyramid_reads_the_last_map_only():
    neck = ViTSimplePyramid(32, 16).eval()
    maps = [torch.randn(1, 32, 4, 4) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(neck(maps), neck(maps[1:])))


def test_channel_layer_norm_is_per_position():
    norm = build_norm_layer(LAYER_NORM, 5)[1]
    torch.nn.init.normal_(norm.weight), torch.nn.init.normal_(norm.bias)
    x = torch.randn(2, 5, 3, 4)
    mean, var = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
    wanted = (x - mean) / (var + 1e-6).sqrt() * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)
    torch.testing.assert_close(norm(x), wanted, atol=1e-6, rtol=1e-5)
    assert norm(x.permute(0, 1, 3, 2)).is_contiguous()  # what mmcv's RoIAlign reads must be


@pytest.mark.parametrize('name', ['mask-rcnn_demo', 'mask-rcnn_vits_fpn_1x_coco'])
def test_rois_are_read_where_they_are(name):
    """mmcv's RoIAlign misreads maps that are not contiguous, and those of a ViT are not: torchvision's is the
    oracle."""
    from torchvision.ops import roi_align

    cfg = config(name)
    model = MODELS.build((cfg if name == 'mask-rcnn_demo' else narrow(cfg)).model)
    model.eval()
    with torch.no_grad():
        maps = model.extract_feat(torch.randn(2, 3, 64, 96))
    assert all(x.is_contiguous() for x in maps)
    rois = torch.tensor([[0.0, 3, 5, 40, 41], [1, 30, 2, 80, 60]])
    for layer, x in zip(model.roi_head.bbox_roi_extractor.roi_layers, maps):
        wanted = roi_align(
            x.clone(memory_format=torch.contiguous_format),
            rois,
            layer.output_size,
            layer.spatial_scale,
            layer.sampling_ratio or -1,
            aligned=True,
        )
        torch.testing.assert_close(layer(x, rois), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('part', ['bbox_roi_extractor', 'mask_roi_extractor'])
def test_the_small_detectors_read_regions_as_mmcv_does_bit_for_bit(part):
    from mmcv.ops import RoIAlign

    torch.manual_seed(0)
    layer = dict(config('mask-rcnn_demo').model.roi_head[part].roi_layer, spatial_scale=0.25)
    assert layer.pop('type', 'RoIAlign') == 'RoIAlign' and layer.pop('use_torchvision')
    corners = torch.rand(50, 2) * 100 - 10
    rois = torch.cat((torch.randint(0, 2, (50, 1)), corners, corners + torch.rand(50, 2) * 80), dim=1)
    found = []
    for ours in (True, False):
        maps = torch.randn(2, 8, 24, 24, generator=torch.Generator().manual_seed(1)).requires_grad_()
        out = RoIAlign(**layer, use_torchvision=ours)(maps, rois)
        (out * torch.arange(out[0].numel()).view_as(out[0])).sum().backward()
        found.append((out, maps.grad))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def test_wrong_number_of_taps_and_unknown_scale():
    with pytest.raises(ValueError, match='3 maps .* 4 pyramid scales'):
        ViTFeaturePyramid(32)([torch.randn(1, 32, 4, 4)] * 3)
    with pytest.raises(ValueError, match='not 3'):
        ViTFeaturePyramid(32, scales=(3,))


# ---- configs -------------------------------------------------------------------------------------

ALL = sorted(p.stem for p in CONFIGS.glob('*.py'))


def test_every_mask_config_has_a_box_only_twin():
    masks = {name.removeprefix('mask-') for name in ALL if name.startswith('mask-')}
    assert len(masks) >= 5 and masks == {name.removeprefix('faster-') for name in ALL if name.startswith('faster-')}


@pytest.mark.parametrize('name', ALL)
def test_config(name, monkeypatch, tmp_path):
    monkeypatch.setenv('COCO_ROOT', str(tmp_path))
    monkeypatch.setenv('ODIS_DEMO_ROOT', str(tmp_path))
    cfg = config(name)
    root = 'data/own/' if name.endswith('_small') else str(tmp_path)
    assert cfg.train_dataloader.dataset.data_root == cfg.val_dataloader.dataset.data_root == root
    assert cfg.val_evaluator.ann_file.startswith(root) and cfg.test_evaluator == cfg.val_evaluator
    assert cfg.model.backbone.type == ('ResNet' if 'r50' in name else 'mmpretrain.VisionTransformer')
    assert cfg.model.backbone.init_cfg.type == ('Pretrained' if 'r50-in1k' in name else 'VerifiedPretrained')
    boxes_only = name.startswith('faster')
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert ('LoadBoxesAndMasks' in [step.type for step in loader.dataset.pipeline]) is not boxes_only
    with torch.device('meta'):  # shapes without memory
        model = MODELS.build(cfg.model)
    if 'vitl' in name:
        backbone = model.backbone
        assert (backbone.embed_dims, backbone.num_layers, backbone.out_indices) == (1024, 24, [7, 11, 15, 23])
    assert model.with_mask is not boxes_only
    num_classes = {int(m.num_classes) for n, m in model.roi_head.named_children() if hasattr(m, 'num_classes')}
    if 'demo' in name:
        from odis_mm.datasets.demo import CLASSES

        assert num_classes == {len(CLASSES)}
    else:
        assert num_classes == {80}


@pytest.mark.parametrize('name', ALL)
def test_annotations_are_drawn_where_they_are(name, tmp_path):
    """mmdet draws them on the image as it is on disk, and resizes predictions back, but not these."""
    mmcv.imwrite(np.zeros((64, 96, 3), np.uint8), str(tmp_path / 'a.png'))
    box = dict(bbox=[8, 4, 40, 60], bbox_label=0, ignore_flag=0, mask=[[8, 4, 40, 4, 40, 60, 8, 60]])
    pipeline = config(name).test_dataloader.dataset.pipeline
    image = dict(img_id=1, img_path=str(tmp_path / 'a.png'), height=64, width=96, instances=[box])
    found = Compose(pipeline)(image)['data_samples']
    assert found.gt_instances.bboxes.numpy().tolist() == [[8, 4, 40, 60]]
    assert found.ori_shape == (64, 96) != found.img_shape


def test_recipe_of_the_paper():
    cfg = config('mask-rcnn_vits_fpn_1x_coco')
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('AdamW', 5e-5, 0.05)
    assert cfg.auto_scale_lr == dict(enable=True, base_batch_size=8) and cfg.train_cfg.max_epochs == 12
    assert cfg.param_scheduler[0].end == 1000 and cfg.param_scheduler[1].milestones == [8, 11]
    assert cfg.model.backbone.out_indices == [3, 5, 7, 11] and cfg.model.backbone.drop_path_rate == 0.05


@pytest.mark.parametrize('kind', ['demo', 'taps', 'vits'])
def test_every_parameter_gets_a_gradient(kind):
    """DDP without find_unused_parameters hangs or raises if one does not."""
    cfg = narrow(config('mask-rcnn_vits_fpn_1x_coco')) if kind == 'vits' else config('mask-rcnn_demo')
    if kind == 'taps':
        cfg.model.backbone.out_indices = [1, 2, 3]
        cfg.model.neck = [
            dict(type='ViTFeaturePyramid', in_channels=128, scales=(2, 1, 0.5)),
            dict(type='FPN', in_channels=[128] * 3, out_channels=64, num_outs=3),
        ]
    model = MODELS.build(cfg.model)
    model.init_weights()
    losses_of(model, detection_batch()).backward()
    unused = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not unused, unused
    assert model.backbone.cls_token.grad.abs().sum() > 0  # patches attend to it


# ---- layer decay ---------------------------------------------------------------------------------


def decay_groups(model, **paramwise):
    wrapper = OPTIM_WRAPPER_CONSTRUCTORS.build(
        dict(
            type='DetectorLayerDecay',
            paramwise_cfg=paramwise or None,
            optim_wrapper_cfg=dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.05)),
        )
    )(model)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = wrapper.optimizer.param_groups
    return groups, {names[id(p)]: (group['lr'], group['weight_decay']) for group in groups for p in group['params']}


def test_layer_decay():
    model, _ = demo_model()
    groups, of = decay_groups(model, layer_decay_rate=0.5)
    assert set(of) == {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(groups) <= 2 * 4 + 4
    for name, wanted in {
        'backbone.pos_embed': (0.5**5, 0.0),
        'backbone.cls_token': (0.5**5, 0.0),
        'backbone.patch_embed.projection.weight': (0.5**5, 0.05),
        'backbone.patch_embed.projection.bias': (0.5**5, 0.0),
        'backbone.layers.0.attn.qkv.weight': (0.5**4, 0.05),
        'backbone.layers.3.attn.qkv.weight': (0.5, 0.05),
        'backbone.layers.3.ln1.weight': (0.5, 0.0),
        'backbone.ln1.weight': (1.0, 0.0),
        'neck.levels.0.1.weight': (1.0, 0.05),
        'roi_head.bbox_head.fc_cls.bias': (1.0, 0.0),
    }.items():
        assert of[name] == pytest.approx(wanted), name


def test_layer_decay_of_a_vit_with_registers_and_rope():
    """Every group's rate against the formula lr * rate^(L + 1 - l), written out for the parameters by hand."""
    depth, rate = 4, 0.7
    cfg = config('mask-rcnn_demo')
    cfg.model.backbone.update(
        type='mmpretrain.ObjectViT', num_registers=4, rope=dict(base=100), key_bias=False, layer_scale_init_value=1e-5
    )
    model = MODELS.build(cfg.model)
    groups, of = decay_groups(model, layer_decay_rate=rate)
    assert set(of) == {name for name, p in model.named_parameters() if p.requires_grad}
    first = ['cls_token', 'register_tokens', 'patch_embed.projection.weight', 'patch_embed.projection.bias']
    wanted = {f'backbone.{name}': rate ** (depth + 1) for name in first}
    for name in of:
        for block in range(depth):
            if name.startswith(f'backbone.layers.{block}.'):
                wanted[name] = rate ** (depth - block)
    assert sum('.gamma' in name or '.ls' in name for name in wanted) >= 2 * depth  # layer scale is there
    assert 'backbone.pos_embed' not in of  # nothing is learned about positions
    for name, (lr, decay) in of.items():
        assert lr == pytest.approx(wanted.get(name, 1.0)), name
        no_decay = name.endswith('.bias') or model.get_parameter(name).ndim == 1 or name.endswith('_token')
        assert decay == (0.0 if no_decay or name.endswith('_tokens') else 0.05), name
    assert sorted({group['lr'] for group in groups}) == pytest.approx([rate**k for k in range(depth + 1, -1, -1)])


def test_no_layer_decay_makes_two_groups():
    model, _ = demo_model()
    for paramwise in ({}, dict(layer_decay_rate=1.0)):
        groups, of = decay_groups(model, **paramwise)
        assert [g['weight_decay'] for g in groups] == [0.0, 0.05] and {lr for lr, _ in of.values()} == {1.0}


def test_frozen_parameters_are_left_out():
    model, _ = demo_model(**{'model.backbone.frozen_stages': 2})
    _, of = decay_groups(model, layer_decay_rate=0.5)
    assert 'backbone.layers.1.attn.qkv.weight' not in of and of['backbone.layers.2.attn.qkv.weight'][0] == 0.25


def test_backbone_rate():
    model, _ = demo_model()
    _, of = decay_groups(model, layer_decay_rate=0.5, backbone_lr_mult=0.1)
    assert of['backbone.layers.3.attn.qkv.weight'][0] == pytest.approx(0.05) and of['neck.levels.0.1.weight'][0] == 1.0


@pytest.mark.parametrize(
    'bad', [dict(backbone_lr_mult=0.0), dict(layer_decay_rate=0.0), dict(layer_decay_rate=1.2), dict(rate=0.5)]
)
def test_layer_decay_refuses(bad):
    with pytest.raises(ValueError, match='layer_decay_rate|backbone_lr_mult'):
        decay_groups(demo_model()[0], **bad)
    with pytest.raises(ValueError, match='no blocks'):
        decay_groups(torch.nn.Linear(2, 2), layer_decay_rate=0.5)


# ---- weights into the detector -------------------------------------------------------------------


@pytest.fixture
def exported(tmp_path):
    arch = config('mask-rcnn_demo').model.backbone.arch
    torch.manual_seed(3)
    model = MODELS.build(
        dict(
            type='mmpretrain.VisionTransformer',
            arch=dict(arch),
            img_size=48,
            patch_size=8,
            out_type='featmap',
            out_indices=[3],
        )
    )
    model.init_weights()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    path = tmp_path / 'iter_7_backbone.pth'
    save_backbone(path, model.state_dict(), {})
    model.eval()
    return model, path


def test_mask_rcnn_keeps_what_was_loaded(exported):
    """mmdet calls init_weights on the built detector; the backbone is the file's all the same, features too."""
    source, path = exported
    # the file's own grid
    detector, _ = demo_model(**{'model.backbone.init_cfg.checkpoint': str(path), 'model.backbone.img_size': 48})
    detector.init_weights()
    state = read_checkpoint(path)
    own = detector.backbone.state_dict()
    assert set(state) == {f'backbone.{k}' for k in own}
    assert all(torch.equal(own[k.removeprefix('backbone.')], v) for k, v in state.items())
    detector.eval()
    images = torch.randn(2, 3, 128, 96)
    with torch.no_grad():
        for a, b in zip(detector.backbone(images), source(images)):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_linear_layers_take_the_faster_library(exported):
    detector, cfg = demo_model(**{'model.backbone.init_cfg.checkpoint': str(exported[1])})
    detector.init_weights()
    logger = MMLogger.get_current_instance()
    DetectorInit().before_train(SimpleNamespace(model=detector, cfg=cfg, iter=0, _load_from=None, logger=logger))
    layers = [layer for layer in detector.modules() if isinstance(layer, nn.Linear)]
    assert len(layers) > 4 and all(type(layer) is Linear for layer in layers)


def test_initialisation_differs_without_a_checkpoint(exported):
    detector, _ = demo_model()
    detector.init_weights()
    assert not torch.equal(detector.backbone.pos_embed, exported[0].pos_embed)


def test_checkpoint_of_another_architecture(exported):
    detector, _ = demo_model(
        **{'model.backbone.init_cfg.checkpoint': str(exported[1]), 'model.backbone.arch.num_layers': 6}
    )
    with pytest.raises(CheckpointError, match='depth 4 instead of 6'):
        detector.init_weights()


# ---- data ----------------------------------------------------------------------------------------


def test_box_only_data_names_the_twin():
    load = TRANSFORMS.build(dict(type='LoadBoxesAndMasks'))
    results = dict(
        img_path='a/b.jpg',
        ori_shape=(10, 10),
        height=10,
        width=10,
        img_shape=(10, 10),
        instances=[dict(bbox=[0, 0, 5, 5], bbox_label=0, ignore_flag=0)],
    )
    with pytest.raises(ValueError, match='a/b.jpg: 1 of 1 objects .* faster-rcnn'):
        load(copy.deepcopy(results))
    results['instances'][0]['mask'] = [[0.0, 0, 5, 0, 5, 5]]
    assert load(results)['gt_masks'].masks.sum() > 0


def small_run(name, shared_data, tmp_path):
    """A recipe with a tiny ViT on few real images at a small size, through mmdet's own data loading and metric."""
    cfg = narrow(config(name))
    cfg.work_dir = str(tmp_path / 'work')
    root = str(shared_data / 'coco')
    resize = dict(type='Resize', scale=(160, 96), keep_ratio=True)
    for loader, count in ((cfg.train_dataloader, 2), (cfg.val_dataloader, 2)):
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.update(data_root=root, indices=count)
        steps = loader.dataset.pipeline
        loader.dataset.pipeline = [resize if s.type in ('Resize', 'RandomChoice') else s for s in steps]
    cfg.train_dataloader.batch_sampler = None
    cfg.val_evaluator.update(
        ann_file=f'{root}/annotations/instances_val2017.json', outfile_prefix=str(tmp_path / 'results')
    )
    cfg.test_dataloader, cfg.test_evaluator = cfg.val_dataloader, cfg.val_evaluator
    cfg.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=1, val_interval=1)
    cfg.model.test_cfg.rcnn.update(score_thr=0.0, max_per_img=5)  # pasting masks at the image's own size is what costs
    cfg.model.test_cfg.rpn.update(nms_pre=100, max_per_img=50)
    cfg.default_hooks.logger.interval = 1
    return cfg


def test_recipe_trains_saves_evaluates_and_resumes(shared_data, tmp_path):
    """A step on real images; the val AP is pycocotools' own on the results written; the checkpoint resumes."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    cfg = small_run('mask-rcnn_vits_fpn_1x_coco', shared_data, tmp_path)
    runner = Runner.from_cfg(cfg)
    before = runner.model.backbone.layers[0].attn.qkv.weight.detach().clone()
    runner.train()
    assert not torch.equal(before, runner.model.backbone.layers[0].attn.qkv.weight)
    checkpoint = tmp_path / 'work' / 'epoch_1.pth'
    content = torch.load(checkpoint, weights_only=True)  # what upstream mmengine does on --resume with torch >= 2.6
    assert 'message_hub' in content and content['meta']['epoch'] == 1
    assert any(key.startswith('backbone.layers.3') for key in read_checkpoint(checkpoint))

    truth = COCO(str(shared_data / 'coco' / 'annotations' / 'instances_val2017.json'))
    for kind in ('bbox', 'segm'):
        results = json.loads((tmp_path / f'results.{kind}.json').read_text())
        assert results
        evaluation = COCOeval(truth, truth.loadRes(results), kind)
        evaluation.evaluate(), evaluation.accumulate(), evaluation.summarize()
        logged = runner.message_hub.get_scalar(f'val/coco/{kind}_mAP').current()
        assert logged == pytest.approx(float(evaluation.stats[0]), abs=6e-4)

    cfg.resume, cfg.experiment_name = True, 'resumed'
    cfg.train_cfg.update(max_epochs=2, val_interval=9)
    resumed = Runner.from_cfg(cfg)
    resumed.train()
    assert resumed.epoch == 2 and resumed.iter == 2 * runner.iter


def test_mask_rcnn_on_box_only_data_stops_with_the_remedy(shared_data, tmp_path):
    root = shared_data / 'coco_boxes_256'
    options = dict(
        train_dataloader=dict(
            num_workers=0,
            persistent_workers=False,
            dataset=dict(data_root=str(root), ann_file='annotations/boxes_train.json', data_prefix=dict(img='images/')),
        )
    )
    loader = Runner.build_dataloader(config('mask-rcnn_vits_fpn_1x_coco', **options).train_dataloader)
    with pytest.raises(ValueError, match='faster-rcnn'):
        next(iter(loader))
    loader = Runner.build_dataloader(config('faster-rcnn_vits_fpn_1x_coco', **options).train_dataloader)
    assert len(next(iter(loader))['inputs']) == 2


def test_the_ap_of_a_class_is_that_of_boxes(tmp_path):
    """mmdet has one name for it and for that of masks: a perfect box with half of its mask."""
    from pycocotools import mask

    from odis_mm.detection.metrics import UntabledCocoMetric

    full, half = np.zeros((2, 32, 32), np.uint8)
    full[4:24, 4:24] = half[4:24, 4:14] = 1
    corners = [4, 4, 24, 4, 24, 24, 4, 24]
    box = dict(id=1, image_id=1, category_id=1, bbox=[4, 4, 20, 20], area=400, iscrowd=0, segmentation=[corners])
    image = dict(id=1, file_name='a.png', height=32, width=32)
    truth = dict(images=[image], annotations=[box], categories=[dict(id=1, name='disc')])
    (tmp_path / 'truth.json').write_text(json.dumps(truth))
    metric = UntabledCocoMetric(ann_file=str(tmp_path / 'truth.json'), metric=['bbox', 'segm'], classwise=True)
    metric.dataset_meta = dict(classes=['disc'])
    found = dict(bboxes=torch.tensor([[4.0, 4, 24, 24]]), scores=torch.ones(1), labels=torch.zeros(1, dtype=torch.long))
    found['masks'] = [mask.encode(np.asfortranarray(half))]
    metric.process({}, [dict(pred_instances=found, img_id=1, ori_shape=(32, 32))])
    metrics = metric.evaluate(1)
    assert metrics['coco/segm_mAP'] < 0.2 and metrics['coco/bbox_mAP'] == metrics['coco/disc_precision'] == 1


@pytest.mark.parametrize('tables', [True, False])
def test_coco_metric_equals_pycocotools(tables, shared_data, tmp_path, capsys):
    """Jittered ground truth as detections: an AP well between 0 and 1, by mmdet's metric and by pycocotools alone."""
    from mmdet.evaluation import CocoMetric
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    from odis_mm.detection.metrics import UntabledCocoMetric

    content = json.loads((shared_data / 'coco' / 'annotations' / 'instances_val2017.json').read_text())
    content['images'] = content['images'][:60]
    kept = {image['id'] for image in content['images']}
    content['annotations'] = [entry for entry in content['annotations'] if entry['image_id'] in kept]
    path = str(tmp_path / 'truth.json')
    Path(path).write_text(json.dumps(content))
    truth = COCO(path)
    categories = truth.getCatIds()
    metric = (CocoMetric if tables else UntabledCocoMetric)(ann_file=path, metric='bbox', classwise=True)
    metric.dataset_meta = dict(classes=[truth.loadCats(c)[0]['name'] for c in categories])
    rng = np.random.default_rng(0)
    ours = []
    for image_id in truth.getImgIds():
        found = [a for a in truth.loadAnns(truth.getAnnIds(image_id)) if rng.random() < 0.8]
        boxes = np.array([a['bbox'] for a in found], np.float64).reshape(-1, 4)
        boxes[:, :2] += rng.normal(0, 0.06, (len(boxes), 2)) * boxes[:, 2:]
        scores, labels = rng.random(len(found)).round(4), [categories.index(a['category_id']) for a in found]
        ours += [
            dict(image_id=image_id, category_id=a['category_id'], bbox=b.tolist(), score=float(s))
            for a, b, s in zip(found, boxes, scores)
        ]
        xyxy = torch.from_numpy(np.concatenate((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), 1))
        info = truth.loadImgs(image_id)[0]
        metric.process(
            {},
            [
                dict(
                    img_id=image_id,
                    ori_shape=(info['height'], info['width']),
                    pred_instances=dict(
                        bboxes=xyxy, scores=torch.from_numpy(scores), labels=torch.tensor(labels, dtype=torch.long)
                    ),
                )
            ],
        )
    capsys.readouterr()
    figures = metric.evaluate(size=60)
    measured = figures['coco/bbox_mAP']
    said = ''.join(capsys.readouterr())
    assert ('Average Precision' in said) == tables and (tables or not said)
    assert any(name.endswith('_precision') for name in figures)
    oracle = COCOeval(truth, truth.loadRes(ours), 'bbox')
    oracle.evaluate(), oracle.accumulate(), oracle.summarize()
    assert 0.1 < oracle.stats[0] < 0.9 and measured == pytest.approx(float(oracle.stats[0]), abs=6e-4)


def test_demo_dataset_renders_itself(tmp_path, monkeypatch):
    from odis_mm.datasets import demo

    few = dict(num_train=2, num_val=1, size=128, seed=0)
    monkeypatch.setattr(demo, 'ensure_demo', lambda root: demo.render_set(Path(root), few, 1))
    monkeypatch.setenv('ODIS_DEMO_ROOT', str(tmp_path / 'set'))
    cfg = config(
        'mask-rcnn_demo',
        train_dataloader=dict(
            num_workers=0, persistent_workers=False, batch_size=2, dataset=dict(data_root=str(tmp_path / 'set'))
        ),
    )
    batch = next(iter(Runner.build_dataloader(cfg.train_dataloader)))
    assert len(os.listdir(tmp_path / 'set' / 'train2017')) == 2 and batch['inputs'][0].shape == (3, 128, 128)
    assert all(len(s.gt_instances.masks) == len(s.gt_instances.bboxes) > 0 for s in batch['data_samples'])
