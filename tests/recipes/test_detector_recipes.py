"""Detector configs made for a data set: classes, anchors, backbone, schedule."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope

from odis_mm.config import check_schedule
from odis_mm.datasets.layout import Split
from odis_mm.recipes import anchors, backbone_settings, detector_config, fitting_size, pretraining_config, read_content
from odis_mm.transfer import save_backbone
from odis_mm.utils.errors import AnnotationError, ConfigError


def write_split(
    folder, name, categories=('cat', 'dog'), segmentation=None, boxes=((10, 10, 40, 30), (50, 20, 30, 40)), width=160
):
    content = dict(
        images=[dict(id=i, file_name=f'{i}.jpg', width=width, height=100) for i in range(3)],
        annotations=[
            dict(id=3 * i + k, image_id=i, category_id=1 + k % 2, bbox=list(box), area=box[2] * box[3], iscrowd=0)
            | (dict(segmentation=segmentation) if segmentation else {})
            for i in range(3)
            for k, box in enumerate(boxes)
        ],
        categories=[dict(id=i + 1, name=name) for i, name in enumerate(categories)],
    )
    path = folder / f'{name}.json'
    path.write_text(json.dumps(content))
    return Split(path, folder)


def test_boxes_give_faster_rcnn_and_masks_give_mask_rcnn(tmp_path):
    boxes = write_split(tmp_path, 'boxes')
    cfg = detector_config(boxes, boxes)
    assert cfg.model.type == 'FasterRCNN' and cfg.val_evaluator.metric == 'bbox'
    masks = write_split(tmp_path, 'masks', segmentation=[[0, 0, 10, 0, 10, 10]])
    cfg = detector_config(masks, masks)
    assert cfg.model.type == 'MaskRCNN' and 'segm' in cfg.val_evaluator.metric
    assert detector_config(masks, masks, detector='faster-rcnn').model.type == 'FasterRCNN'
    assert cfg.model.roi_head.mask_head.num_classes == cfg.model.roi_head.bbox_head.num_classes == 2
    assert cfg.train_dataloader.dataset.metainfo.classes == ('cat', 'dog')


@pytest.mark.parametrize('nothing', [[[]], [[10, 10, 40, 10]]])
def test_masks_that_mask_rcnn_would_be_refused_for_are_none(nothing, tmp_path):
    empty = write_split(tmp_path, 'empty', segmentation=nothing)
    assert detector_config(empty, empty).model.type == 'FasterRCNN'
    crowd = write_split(tmp_path, 'crowd', segmentation=[[0, 0, 10, 0, 10, 10]])
    content = json.loads(crowd.ann_file.read_text())
    content['annotations'][0].update(iscrowd=1, segmentation=nothing)
    crowd.ann_file.write_text(json.dumps(content))
    assert detector_config(crowd, crowd).model.type == 'FasterRCNN'


@pytest.mark.parametrize('iterations', [2, 20, 300, 5000])
def test_the_schedule_ends_with_the_run(tmp_path, iterations):
    split = write_split(tmp_path, 'train')
    cfg = detector_config(split, split, iterations=iterations, evaluations=2)
    check_schedule(cfg)
    warmup, cosine = cfg.param_scheduler
    assert warmup.end == cosine.begin < iterations == cosine.end == cosine.begin + cosine.T_max
    assert warmup.end <= iterations / 2 and cfg.train_cfg.max_iters == iterations
    with pytest.raises(ConfigError, match='steps must be 2 or more, got 1'):
        detector_config(split, split, iterations=1)


@pytest.mark.parametrize(
    'options', [{'train_cfg.max_iters': 1000}, {'train_cfg.max_epochs': 9}, {'train_cfg': dict(max_iters=9)}]
)
def test_the_length_is_set_by_steps_which_the_schedule_follows(tmp_path, options):
    split = write_split(tmp_path, 'train')
    with pytest.raises(ConfigError, match='set the length by --steps'):
        detector_config(split, split, options=options)
    with pytest.raises(ConfigError, match='set the length by --steps'):
        pretraining_config(tmp_path, options=options)


def test_classes_must_be_numbered_alike(tmp_path):
    train, val = write_split(tmp_path, 'train'), write_split(tmp_path, 'val', categories=('dog', 'cat'))
    with pytest.raises(ConfigError, match='in the same order'):
        detector_config(train, val)
    with pytest.raises(ConfigError, match='no class in common'):
        detector_config(train, write_split(tmp_path, 'other', categories=('bird', 'fish')))
    with pytest.raises(ConfigError, match="two categories are named 'cat'"):
        read_content(write_split(tmp_path, 'twice', categories=('cat', 'cat')))
    with pytest.raises(ConfigError, match='shares.json has no object with a box of a pixel .* not shares of the image'):
        read_content(write_split(tmp_path, 'shares', boxes=[[0.1, 0.2, 0.5, 0.5]]))


def test_classes_need_names(tmp_path):
    split = write_split(tmp_path, 'train', categories=('cat', None))
    with pytest.raises(AnnotationError, match=r'train.json: categories\[1\] has no name'):
        detector_config(split, split)


def test_validation_on_training_images_is_told(tmp_path):
    train, val = write_split(tmp_path, 'train'), write_split(tmp_path, 'val')
    told = 'mind: 3 of the 3 validation images are among the training images'
    assert any(note.startswith(told) for note in detector_config(train, val).notes)
    elsewhere = Split(val.ann_file, tmp_path / 'val')
    assert not any(note.startswith('mind') for note in detector_config(train, elsewhere).notes)
    (tmp_path / 'val').mkdir()
    for name in ('0.jpg', '1.jpg', '2.jpg'):
        (tmp_path / name).touch()
        (tmp_path / 'val' / name).symlink_to(tmp_path / name)
    assert any(note.startswith(told) for note in detector_config(train, elsewhere).notes), 'links to one file'


def test_the_config_of_a_pretraining_is_no_detector(tmp_path):
    split = write_split(tmp_path, 'train')
    with pytest.raises(ConfigError, match='^gtsa_small is not the config of a detector: take mask-rcnn'):
        detector_config(split, split, detector='gtsa_small')


def test_the_backbone_takes_the_shape_of_the_file(tmp_path):
    from mmpretrain.registry import MODELS

    init_default_scope('mmpretrain')
    arch = dict(embed_dims=96, num_layers=3, num_heads=3, feedforward_channels=192)
    vit = MODELS.build(dict(type='VisionTransformer', arch=arch, img_size=64, patch_size=16))
    file = tmp_path / 'x_backbone.pth'
    save_backbone(file, vit.state_dict(), dict(num_heads=3))
    settings = backbone_settings(file)
    assert settings['arch'] == arch and settings['patch_size'] == 16 and settings['img_size'] == (64, 64)
    split = write_split(tmp_path, 'train')
    cfg = detector_config(split, split, init=file, size=120)
    assert cfg.model.backbone.out_indices == [2] and cfg.model.neck.in_channels == 96
    assert (
        cfg.model.rpn_head.anchor_generator.strides
        == [4, 8, 16, 32]
        == cfg.model.roi_head.bbox_roi_extractor.featmap_strides
    )
    assert cfg.model.backbone.img_size == 128  # a multiple of the patch
    from mmdet.registry import MODELS as DETECTORS

    init_default_scope('mmdet')
    detector = DETECTORS.build(cfg.model)
    detector.init_weights()
    assert torch.equal(detector.backbone.layers[0].attn.qkv.weight, vit.layers[0].attn.qkv.weight)
    maps = detector.extract_feat(torch.zeros(1, 3, 128, 224))
    assert [m.shape[-1] for m in maps] == [56, 28, 14, 7]


@pytest.mark.parametrize('name', ['faster-rcnn_small', 'mask-rcnn_small', 'faster-rcnn_vits_fpn_1x_coco'])
def test_a_detector_sees_little_padding(name, tmp_path):
    """A ViT attends to it, and its positions are those of the padded image."""
    from mmengine.runner import Runner

    class Images(torch.utils.data.Dataset):
        def __len__(self):
            return 40

        def __getitem__(self, index):
            return index

        def get_data_info(self, index):
            return dict(width=60 + 40 * (index % 2), height=80)

    split = write_split(tmp_path, 'train', segmentation=[[0, 0, 10, 0, 10, 10]])
    cfg = detector_config(split, split, detector=name)
    assert cfg.val_dataloader.batch_size == cfg.test_dataloader.batch_size == 1
    init_default_scope('mmdet')
    told = dict(dataset=Images(), num_workers=0, persistent_workers=False)
    batches = iter(Runner.build_dataloader({**cfg.train_dataloader, **told}))
    for batch in (next(batches) for _ in range(10)):
        assert len(batch) == cfg.train_dataloader.batch_size and len({index % 2 for index in batch}) == 1


@torch.no_grad()
def test_positions_are_resampled_as_in_the_pretraining(tmp_path):
    from mmpretrain.registry import MODELS

    from odis_mm.config import load_config
    from odis_mm.models import ObjectViT
    from odis_mm.recipes.starting import start_from

    arch = dict(embed_dims=96, num_layers=4, num_heads=3, feedforward_channels=192)
    vit = ObjectViT(arch=arch, img_size=224, antialias=True).eval()
    vit.pos_embed.normal_()
    save_backbone(tmp_path / 'x_backbone.pth', vit.state_dict(), vit.settings())
    cfg = load_config('faster-rcnn_vits_fpn_1x_coco')
    start_from(cfg, tmp_path / 'x_backbone.pth')
    init_default_scope('mmdet')
    backbone = MODELS.build(cfg.model.backbone)
    backbone.init_weights()
    backbone.eval()
    images = torch.randn(1, 3, 96, 320)
    expected = vit.to_map(vit(images)[-1], (96, 320))
    torch.testing.assert_close(backbone(images)[-1], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize('side, kept', [(37, True), (8, False)])
def test_positions_finer_than_the_config_s_reach_large_images(side, kept, tmp_path):
    """DINOv2's 37 x 37 are brought to the image at once, as timm does it, and not to 16 x 16 before."""
    import timm
    from mmpretrain.registry import MODELS

    from odis_mm.config import load_config
    from odis_mm.recipes.starting import start_from

    shape = dict(embed_dim=128, depth=4, num_heads=2, num_classes=0, dynamic_img_size=True)
    model = timm.create_model('vit_small_patch14_reg4_dinov2', img_size=14 * side, **shape).eval()
    model.pos_embed.normal_()
    file = tmp_path / 'dinov2.pth'
    torch.save(dict(state_dict=model.state_dict(), meta=dict(num_heads=2)), file)
    cfg = load_config('faster-rcnn_vits_fpn_1x_coco')
    start_from(cfg, file)
    assert cfg.model.backbone.img_size == (14 * side if kept else 224)
    init_default_scope('mmdet')
    backbone = MODELS.build(cfg.model.backbone)
    backbone.init_weights()
    backbone.eval()
    images = torch.randn(1, 3, 14 * 40, 14 * 30)
    tokens = model.forward_features(images)[:, 5:]
    expected = tokens.mT.unflatten(2, (40, 30))
    difference = (backbone(images)[-1] - expected).abs().max()
    assert not kept or difference <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize(
    'side, size, told',
    [(30, 128, None), (4, 224, 'so images have 224 px'), (3, 256, '100% at 256 px: a larger --size')],
)
def test_images_are_as_large_as_small_objects_ask_for(side, size, told, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    split = write_split(tmp_path, 'train', boxes=((5, 5, side, side),))  # at a short side of 100 px
    assert fitting_size(read_content(split)) == size
    cfg = detector_config(split, split)
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        assert next(step for step in loader.dataset.pipeline if step.type == 'Resize').scale[1] == size
    notes = [note for note in cfg.notes if note.startswith('size: 100% of the objects are below 8 px at a short side')]
    assert [told in note for note in notes] == [True] * bool(told)
    assert not [note for note in detector_config(split, split, size=128).notes if note.startswith('size:')]


def test_long_images_are_made_smaller_than_their_short_side_says(tmp_path, monkeypatch):
    """The sides that follow from the annotations are those of boxes that mmdet resizes."""
    from mmcv.transforms import Compose

    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    split = write_split(tmp_path, 'train', boxes=((5, 5, 12, 12),), width=500)
    content = read_content(split)
    assert fitting_size(content) == 224  # 4.3 pixels at the short side of 128 that 213 x 43 pixels would have
    init_default_scope('mmdet')
    for options in (dict(), dict(size=300), dict(detector='faster-rcnn_vitb_vitdet_lsj-100e_coco')):
        cfg = detector_config(split, split, **options)
        resize = next(step for step in cfg.test_dataloader.dataset.pipeline if step.type == 'Resize')
        image = Compose([dict(resize, type='mmdet.Resize')])(dict(img=np.zeros((100, 500, 3), np.uint8)))
        side = 12 * image['scale_factor'][0]
        generator = cfg.model.rpn_head.anchor_generator
        expected = anchors(replace(content, sides=np.full((3, 2), 100.0)), side / 12 * 100, generator.strides)
        assert generator.scales == expected['scales']


def test_a_resnet_has_images_of_the_size_asked_for(tmp_path):
    from mmdet.registry import MODELS as DETECTORS

    split = write_split(tmp_path, 'train')
    cfg = detector_config(split, split, detector='faster-rcnn_r50_fpn_1x_coco', size=96)
    init_default_scope('mmdet')
    DETECTORS.build(cfg.model.backbone)
    assert {tuple(step.scale) for step in cfg.train_dataloader.dataset.pipeline if step.type == 'Resize'} == {(160, 96)}


def test_random_weights_are_not_frozen(tmp_path):
    split = write_split(tmp_path, 'train')
    file = tmp_path / 'r50_backbone.pth'
    save_backbone(file, dict(weight=torch.zeros(1)), {})
    named = {'model.backbone.init_cfg.checkpoint': str(file)}
    for given, frozen in ((dict(), -1), (dict(init=file), 1), (dict(options=named), 1)):
        backbone = detector_config(split, split, detector='faster-rcnn_r50_fpn_1x_coco', **given).model.backbone
        assert (backbone.frozen_stages, backbone.norm_eval) == (frozen, frozen == 1)


def test_images_are_those_that_mmdet_trains_on(tmp_path):
    from mmdet.datasets import CocoDataset

    split = write_split(tmp_path, 'train')
    content = json.loads(split.ann_file.read_text())
    content['images'] += [dict(id=i, file_name=f'{i}.jpg', width=160, height=100) for i in range(3, 8)]
    content['annotations'].append(dict(content['annotations'][0], id=99, image_id=3, iscrowd=1))
    split.ann_file.write_text(json.dumps(content))
    found, options = read_content(split), detector_config(split, split).train_dataloader.dataset
    read = CocoDataset(
        **{name: options[name] for name in ('ann_file', 'data_prefix', 'metainfo', 'filter_cfg')}, pipeline=[]
    )
    assert (found.images, found.bare) == (len(read), 8 - len(read)) == (4, 4)


def test_anchors_reach_the_objects(tmp_path):
    for side in (3, 12, 30, 90):
        split = write_split(tmp_path, f'x{side}', boxes=((5, 5, side, side),))
        found = anchors(read_content(split), short=100, strides=[4, 8, 16])
        sides = np.outer(found['scales'], [4, 8, 16]).ravel()
        assert np.abs(np.log2(sides / side)).min() <= 0.5
        assert len(found['scales']) == 2  # anchors for small objects replace those for large ones
        notes = detector_config(split, split, size=100).notes  # patches of 8 pixels: levels of 4, 8 and 16
        least, most = (found['scales'][0] * 4, found['scales'][-1] * 16)
        assert f'images: short side 100 px (--size); anchors, by the objects: {least:.0f} to {most:.0f} px' in notes
    long = anchors(read_content(write_split(tmp_path, 'long', boxes=((5, 5, 10, 60),))), 100, [4, 8, 16])
    assert 3.0 in long['ratios']


@pytest.mark.parametrize('patch', [8, 14])
@pytest.mark.parametrize('name', ['faster-rcnn_vits_fpn_1x_coco', 'faster-rcnn_demo'])
def test_anchors_and_rois_have_the_strides_of_the_maps(name, patch, tmp_path):
    """Of a file with other patches than the config's, whichever command names it."""
    from mmdet.registry import MODELS as DETECTORS
    from mmpretrain.registry import MODELS

    from odis_mm.config import load_config
    from odis_mm.recipes.starting import start_from

    init_default_scope('mmpretrain')
    arch = dict(embed_dims=96, num_layers=4, num_heads=3, feedforward_channels=192)
    vit = MODELS.build(dict(type='VisionTransformer', arch=arch, img_size=112, patch_size=patch))
    file = tmp_path / 'x_backbone.pth'
    save_backbone(file, vit.state_dict(), dict(num_heads=3))
    cfg = load_config(name)
    own = cfg.model.rpn_head.anchor_generator
    sides = np.outer(own.scales, own.strides)
    start_from(cfg, file)
    found = cfg.model.rpn_head.anchor_generator
    np.testing.assert_allclose(np.outer(found.scales, found.strides), sides)  # objects are as large as before
    init_default_scope('mmdet')
    side = 16 * cfg.model.data_preprocessor.pad_size_divisor
    maps = DETECTORS.build(cfg.model).extract_feat(torch.zeros(1, 3, side, side))
    strides = [side / level.shape[-1] for level in maps]
    assert cfg.model.rpn_head.anchor_generator.strides == strides
    rois = cfg.model.roi_head.bbox_roi_extractor.featmap_strides
    assert rois == strides[: len(rois)]
