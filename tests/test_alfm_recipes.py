"""ALFM's recipes: views, numbers, the share of the data, mmdet's own R50 detector, the ablation's table."""

import os.path as osp

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.registry import DATASETS, MODELS

from odis_mm import apis
from odis_mm.datasets.transforms import collate_views

RECIPES = ('alfm_vits_coco', 'alfm_vitb_coco', 'alfm_r50_coco', 'alfm_r50_in1k_10pct', 'alfm_demo')


@pytest.mark.parametrize('name', RECIPES)
def test_numbers_and_views(name):
    cfg = apis.load_config(name)
    model, pipeline = cfg.model, cfg.train_dataloader.dataset.pipeline
    assert model.neck.num_prototypes == model.head.num_prototypes == (64 if 'demo' in name else 4096)
    assert (model.head.eps2, model.head.lambda_entropy, model.head.context_temp, model.head.student_temp) == (
        0.05,
        0.3 if 'demo' in name else 1.0,
        0.1,
        0.1,
    )
    assert model.head.teacher_temp == (0.025 if 'demo' in name else dict(start=0.04, end=0.07, warmup_epochs=30))
    assert [step.type for step in pipeline] == [
        'LoadObjectImage',
        'SampleViews',
        'RenderViews',
        'PhotometricViews',
        'PackViews',
    ]
    (views,), stride = pipeline[1].views, 32 if 'r50' in name else 8 if 'demo' in name else 16
    assert (
        (views.role, views.num, views.flip) == ('global', 2, 0.5)
        and pipeline[1].patch_size == stride
        and views['size'] % stride == 0
    )
    assert pipeline[1].target_rule == 'whole_image'
    assert cfg.train_dataloader.dataset.data_fraction == (0.1 if '10pct' in name else 1.0)
    assert cfg.default_hooks.schedule.weight_decay_end == (None if 'r50' in name else 0.04 if 'demo' in name else 0.4)
    said = open(cfg.filename).readline()
    assert 'our reconstruction' in said


@pytest.mark.parametrize('name', ['alfm_vits_coco', 'alfm_r50_coco'])
def test_real_images_train_a_recipe(name, shared_data):
    """Two pictures of COCO through the recipe's pipeline, model and losses, backbone and necks as they are."""
    init_default_scope('mmpretrain')
    cfg = apis.load_config(
        name,
        {
            'train_dataloader.dataset.data_root': str(shared_data / 'coco'),
            'train_dataloader.dataset.pipeline.1.views.0.size': 64,
            'model.neck.num_prototypes': 32,
            'model.head.num_prototypes': 32,
        },
    )
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    batch = collate_views([dataset[0], dataset[1]])
    assert [tuple(x.shape) for x in batch['inputs']] == [(4, 3, 64, 64)]
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).train()
    model.init_weights()
    model.set_progress(0, 10, 10)
    losses = model(**model.data_preprocessor(batch, True), mode='loss')
    (losses['loss_gmsr'] + losses['loss_cdlp']).backward()
    assert losses['overlap'] == 1 and all(torch.isfinite(value) for value in losses.values())
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_a_tenth_of_any_dataset_is_part_of_a_fifth(shared_data):
    """The option of the 10 % comparison, on COCO's file, on a plain folder and by seed."""

    def images(fraction, seed=0, **kwargs):
        dataset = DATASETS.build(
            dict(
                type='ObjectDataset',
                data_root=str(shared_data / 'coco'),
                data_prefix='train2017',
                seed=seed,
                data_fraction=fraction,
                **kwargs,
            )
        )
        return {dataset.get_data_info(i)['img_path'] for i in range(len(dataset))}

    for source in (dict(ann_file='annotations/instances_train2017.json'), dict(ann_file='')):
        tenth, fifth, whole = (images(f, **source) for f in (0.1, 0.2, 1.0))
        assert tenth < fifth < whole and len(tenth) == round(0.1 * len(whole)) and images(0.1, **source) == tenth
        assert images(0.1, seed=1, **source) != tenth


def test_the_r50_detector_is_mmdets():
    """Model, optimizer, schedule and pipelines equal those of mmdet's file; where our keys differ, that is the
    difference."""
    mmdet = pytest.importorskip('mmdet')
    path = osp.join(osp.dirname(mmdet.__file__), '.mim', 'configs', 'mask_rcnn', 'mask-rcnn_r50_fpn_1x_coco.py')
    if not osp.isfile(path):
        pytest.skip('mmdet was installed without its configs')
    stock, ours = Config.fromfile(path), apis.load_config('mask_rcnn/mask-rcnn_r50_fpn_1x_coco')
    assert ours.model.backbone.init_cfg == dict(type='VerifiedPretrained', checkpoint=None)
    supervised = apis.load_config('mask_rcnn/mask-rcnn_r50-in1k_fpn_1x_coco')
    assert plain(supervised.model) == plain(stock.model)
    ours.model.backbone.init_cfg = stock.model.backbone.init_cfg
    assert plain(ours.model) == plain(stock.model)
    for key in ('optim_wrapper', 'param_scheduler', 'train_cfg', 'val_cfg'):
        assert plain(ours[key]) == plain(stock[key]), key
    assert ours.auto_scale_lr.base_batch_size == stock.auto_scale_lr.base_batch_size == 16
    assert ours.train_dataloader.batch_size == stock.train_dataloader.batch_size
    for key in ('train_dataloader', 'val_dataloader'):
        assert plain(ours[key].dataset.pipeline) == plain(stock[key].dataset.pipeline), key
        assert ours[key].dataset.get('filter_cfg') == stock[key].dataset.get('filter_cfg')


def plain(node):
    """A config without what does not count: storage backends, tuple or list, our loaders of the same annotations
    and images."""
    if isinstance(node, dict):
        node = {key: value for key, value in node.items() if key != '_scope_'}  # mmengine's own
        if node.get('type') == 'LoadBoxesAndMasks':
            return dict(type='LoadAnnotations', with_bbox=True, with_mask=True)
        if node.get('type') == 'LoadDetectionImage':  # as stored, whatever EXIF says
            return dict(type='LoadImageFromFile')
        return {key: plain(value) for key, value in node.items() if key != 'backend_args'}
    return [plain(value) for value in node] if isinstance(node, (list, tuple)) else node
