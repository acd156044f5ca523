"""Annotations of detectors: completed where that is arithmetic, refused in one sentence where it is not, before
anything is built."""

import copy
import json

import cv2
import numpy as np
import pytest

from odis_mm.config import load_config
from odis_mm.utils.errors import AnnotationError, ConfigError, MissingFileError

checks = pytest.importorskip('odis_mm.detection.checks', exc_type=ImportError)
SQUARE = [[4.0, 5.0, 24.0, 5.0, 24.0, 15.0, 4.0, 15.0]]


def content() -> dict:
    return dict(
        images=[dict(id=i, file_name=f'{i}.png', height=48, width=64) for i in (1, 2)],
        annotations=[
            dict(
                id=i,
                image_id=i,
                category_id=i,
                bbox=[4, 5, 20, 10],
                area=200.0,
                iscrowd=0,
                segmentation=copy.deepcopy(SQUARE),
            )
            for i in (1, 2)
        ],
        categories=[dict(id=1, name='wheat head'), dict(id=2, name='leaf')],
    )


def config(folder, train=None, val=None, name='mask-rcnn_vits_fpn_1x_coco', classes=('wheat head', 'leaf'), heads=2):
    for i in (1, 2):
        cv2.imwrite(str(folder / f'{i}.png'), np.zeros((48, 64, 3), np.uint8))
    cfg = load_config(name)
    cfg.work_dir = str(folder / 'work')
    for part, found in (('train', train), ('val', val)):
        (folder / f'{part}.json').write_text(json.dumps(found or content()))
        loader = cfg[f'{part}_dataloader']
        loader.dataset.update(data_root=str(folder), ann_file=f'{part}.json', data_prefix=dict(img=''))
        if classes:
            loader.dataset.metainfo = dict(classes=classes)
    cfg.val_evaluator.ann_file = f'{folder}/val.json'
    cfg.model.roi_head.bbox_head.num_classes = heads
    if cfg.model.roi_head.get('mask_head'):
        cfg.model.roi_head.mask_head.num_classes = heads
    return cfg


def changed(*path, value=None, remove=False) -> dict:
    found = content()
    node = found
    for key in path[:-1]:
        node = node[key]
    if remove:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return found


COCO_NAMES = changed('categories', value=[dict(id=1, name='car'), dict(id=2, name='leaf')])  # one of COCO's 80


def test_what_is_right_stays(tmp_path):
    cfg = config(tmp_path)
    before = copy.deepcopy(cfg._cfg_dict)
    assert checks.check_detection_data(cfg, ('train', 'val')) == [] and cfg._cfg_dict == before
    assert not (tmp_path / 'work').exists()


@pytest.mark.parametrize(
    'given, line',
    [
        (changed('annotations', 0, 'area', remove=True), '1 areas computed'),
        (changed('annotations', 0, 'area', value=0), '1 areas computed'),
        (changed('annotations', 0, 'area', value='?'), '1 areas computed'),
        (changed('annotations', 0, 'area', value='200'), '1 numbers that were text'),
        (changed('annotations', 0, 'iscrowd', remove=True), '1 annotations given iscrowd=0'),
        (changed('annotations', 0, 'iscrowd', value='0'), '1 numbers that were text'),
        (changed('annotations', 0, 'id', remove=True), '2 annotations numbered anew'),
        (changed('annotations', 0, 'id', value=2), '2 annotations numbered anew'),
        (changed('annotations', 0, 'id', value=0), '2 annotations numbered anew'),
        (changed('annotations', 0, 'id', value='a'), '2 annotations numbered anew'),
        (changed('images', 0, 'height', remove=True), '1 sizes of images read from their files'),
        (changed('images', 0, 'width', value='64'), '1 numbers that were text'),
        (changed('annotations', 0, 'bbox', value=['4', 5, 20, 10]), '1 numbers that were text'),
        (changed('annotations', 0, 'image_id', value='1'), '1 numbers that were text'),
        (
            changed('annotations', 0, 'segmentation', value=[[1, 2, 3, 4], *SQUARE]),
            '1 masks without their polygons of fewer',
        ),
    ],
)
def test_what_can_be_computed_is(tmp_path, given, line):
    """Both mmdet's data set and the evaluation read what comes of it, as they read the file that lacked nothing."""
    from mmdet.datasets import CocoDataset
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    cfg = config(tmp_path, train=given, val=given)
    lines = checks.check_detection_data(cfg, ('train', 'val'))
    assert len(lines) == 2 and all(line in told for told in lines)
    assert json.loads((tmp_path / 'val.json').read_text()) == given, "the user's file is as it was"
    options = {key: value for key, value in cfg.train_dataloader.dataset.items() if key not in ('type', 'pipeline')}
    dataset = CocoDataset(**options, pipeline=[])
    assert len(dataset) == 2 and [len(dataset.get_data_info(i)['instances']) for i in range(2)] == [1, 1]
    truth = COCO(cfg.val_evaluator.ann_file)
    assert sorted(ann['area'] for ann in truth.anns.values()) == [200, 200]
    found = [
        dict(image_id=a['image_id'], category_id=a['category_id'], score=1.0, bbox=a['bbox'])
        for a in truth.anns.values()
    ]
    scores = COCOeval(truth, truth.loadRes(found), 'bbox')
    scores.evaluate(), scores.accumulate(), scores.summarize()
    assert scores.stats[0] == pytest.approx(1)
    assert all(truth.annToMask(ann).sum() == 200 for ann in truth.anns.values())


@pytest.mark.parametrize('part', ['train', 'val'])
@pytest.mark.parametrize(
    'given, error, needle',
    [
        (
            changed('annotations', 1, 'segmentation', value=[[1, 2, 3, 4]]),
            AnnotationError,
            r'1 of 2 objects .the first: annotations\[1\]',
        ),
        (changed('annotations', 1, 'segmentation', remove=True), AnnotationError, 'have no mask .*faster-rcnn'),
        (changed('annotations', 1, 'segmentation', value={}), AnnotationError, 'have no mask .*faster-rcnn'),
        (changed('categories', 1, 'name', remove=True), AnnotationError, r'categories\[1\] has no name'),
        (
            changed('annotations', 1, 'category_id', remove=True),
            AnnotationError,
            r'annotations\[1\] has no category_id',
        ),
        (changed('annotations', 1, 'bbox', value=[1, 2, 3]), AnnotationError, r'annotations\[1\] is not a dict'),
        (changed('images', 1, 'id', remove=True), AnnotationError, r'images\[1\] is not a dict'),
        (changed('categories', remove=True), AnnotationError, 'has no categories'),
        (changed('categories', value=[]), AnnotationError, 'has no categories'),
        (changed('annotations', value=[]), AnnotationError, 'has no annotations, by which .* name one with objects'),
        ({'1.png': [[1, 2, 3, 4]]}, AnnotationError, 'not of COCO style'),
        (
            changed('categories', 1, 'name', value='wheat head'),
            AnnotationError,
            "two categories are named 'wheat head'",
        ),
        (changed('images', 1, 'width', value=10**6), AnnotationError, '2.png of .* is 1000000 x 48 pixels, and less'),
    ],
)
def test_what_can_not_is_refused(tmp_path, part, given, error, needle):
    with pytest.raises(error, match=needle) as caught:
        checks.check_detection_data(config(tmp_path, **{part: given}), ('train', 'val'))
    assert f'{part}.json' in str(caught.value)


def test_images_are_missed_although_the_file_was_looked_at_before(tmp_path, monkeypatch):
    monkeypatch.setattr(checks, 'CACHE_FROM', 1)
    monkeypatch.setenv('ODIS_MM_CACHE', str(tmp_path / 'cache'))
    cfg = config(tmp_path, val={**content(), 'info': 'another file'})
    checks.check_detection_data(cfg, ('train', 'val'))
    with monkeypatch.context() as patch:
        patch.setattr(checks, 'complete', lambda *args: pytest.fail('the note was not taken'))
        checks.check_detection_data(cfg, ('train', 'val'))
    (tmp_path / '2.png').unlink()
    checks.check_detection_data(cfg, ('train',))
    with pytest.raises(MissingFileError, match='1 of 2 images of .*val.json do not exist, .*2.png'):
        checks.check_detection_data(cfg, ('train', 'val'))


@pytest.mark.parametrize('gone', [[0], [1], [0, 1]])
def test_missing_images_whatever_their_places_in_the_list(tmp_path, gone):
    """In training other images take their place, as long as there are some; in validation none may be missing."""
    given = content()
    for i in gone:
        given['images'][i]['file_name'] = f'gone{i}.png'
    if len(gone) == 1:
        checks.check_detection_data(config(tmp_path, train=given), ('train', 'val'))
        told = rf'1 of 2 images of \S*val.json do not exist, .*/gone{gone[0]}.png'
    else:
        with pytest.raises(MissingFileError, match='none of the 2 file names of .*train.json'):
            checks.check_detection_data(config(tmp_path, train=given), ('train', 'val'))
        told = 'none of the 2 file names of .*val.json'
    with pytest.raises(MissingFileError, match=told):
        checks.check_detection_data(config(tmp_path, val=given), ('train', 'val'))


@pytest.mark.parametrize(
    'box',
    [
        [float('nan'), 5, 20, 10],
        [4, 5, float('inf'), 10],
        [4, 5, -20, 10],
        [4, 500, 20, 10],
        [-90, 5, 20, 10],
        [64, 5, 20, 10],  # it begins where the image ends
        [4, -10, 20, 10],
    ],
)
def test_boxes_that_are_none_are_left_out_and_told(tmp_path, box):
    given = content()
    given['annotations'].append(dict(given['annotations'][0], id=3, bbox=box))
    cfg = config(tmp_path, train=given, val=given)
    (line, _) = checks.check_detection_data(cfg, ('train', 'val'))
    assert '1 objects left out whose box is no box, or outside of its image' in line
    assert json.loads(open(cfg.val_evaluator.ann_file).read())['annotations'] == content()['annotations']


def test_objects_to_ignore_are_no_misses(tmp_path):
    given = changed('annotations', 1, 'ignore', value=1)
    cfg = config(tmp_path, train=given, val=given)
    (line, _) = checks.check_detection_data(cfg, ('train', 'val'))
    assert '1 annotations with ignore taken as crowd regions' in line
    found = json.loads(open(cfg.val_evaluator.ann_file).read())['annotations']
    assert [annotation['iscrowd'] for annotation in found] == [0, 1]  # which COCOeval does not ask for


def mixed(what: str, key: str) -> dict:
    found = content()
    found[what][0]['id'] = found['annotations'][0][key] = '007'  # no number: some tools write the names of files
    return found


@pytest.mark.parametrize(
    'given, line',
    [
        (mixed('images', 'image_id'), '2 images numbered anew'),
        (mixed('categories', 'category_id'), '2 categories numbered anew'),
        (changed('categories', 0, 'name', value=5), '1 names of classes that were numbers'),
    ],
)
def test_ids_of_both_kinds_and_names_that_are_numbers(tmp_path, given, line):
    """Such files train and are evaluated: objects that are found are found, of each class."""
    import torch
    from mmdet.datasets import CocoDataset
    from mmdet.evaluation import CocoMetric

    classes = tuple(str(category['name']) for category in given['categories'])
    cfg = config(tmp_path, train=given, val=given, classes=classes)
    assert all(line in told for told in checks.check_detection_data(cfg, ('train', 'val')))
    options = {key: value for key, value in cfg.train_dataloader.dataset.items() if key not in ('type', 'pipeline')}
    dataset = CocoDataset(**options, pipeline=[])
    infos = [dataset.get_data_info(i) for i in range(2)]
    assert [[instance['bbox_label'] for instance in info['instances']] for info in infos] == [[0], [1]]
    metric = CocoMetric(ann_file=cfg.val_evaluator.ann_file, metric='bbox')
    metric.dataset_meta = dict(classes=classes)
    for label, info in enumerate(infos):
        found = dict(bboxes=torch.tensor([[4.0, 5, 24, 15]]), scores=torch.ones(1), labels=torch.tensor([label]))
        metric.process({}, [dict(img_id=info['img_id'], ori_shape=(48, 64), pred_instances=found)])
    assert metric.evaluate(2)['coco/bbox_mAP'] == 1


def test_boxes_alone_need_no_masks(tmp_path):
    given = changed('annotations', 1, 'segmentation', remove=True)
    cfg = config(tmp_path, given, given, name='faster-rcnn_vits_fpn_1x_coco')
    assert checks.check_detection_data(cfg, ('train', 'val')) == [] and not (tmp_path / 'work').exists()


@pytest.mark.parametrize(
    'options, needle',
    [
        (
            dict(classes=None),
            r"categories 'wheat head', 'leaf', but .*'person', .*metainfo.classes=\"\('wheat head','leaf',\)\"",
        ),
        (dict(classes=('wheathead', 'leaf')), "asks for 'wheathead': set train_dataloader.dataset.metainfo.classes"),
        (dict(classes='wheat head'), 'must be a list of names'),
        (
            dict(classes=('leaf', 'wheat head')),
            r"lists the classes 'wheat head', 'leaf', .* but the config 'leaf', 'wheat head'.*"
            r"=\"\('wheat head', 'leaf'\)\"",
        ),
        (dict(train=COCO_NAMES, classes=None, heads=80), r"lists the classes 'car', .* but the config 'person'"),
        (
            dict(heads=1),
            r'2 classes .*bbox_head.num_classes=1.*set --cfg-options model.roi_head.bbox_head.num_classes=2 '
            r'model.roi_head.mask',
        ),
        (dict(heads=80), 'num_classes=80'),
        (dict(classes=('leaf',)), 'the data has 1 classes'),
    ],
)
def test_classes_are_those_of_the_data(tmp_path, options, needle):
    with pytest.raises(ConfigError, match=needle):
        checks.check_detection_data(config(tmp_path, **options), ('train', 'val'))


def test_categories_that_are_left_out_are_told(tmp_path):
    (line, _) = checks.check_detection_data(config(tmp_path, classes=('leaf',), heads=1), ('train', 'val'))
    assert "objects left out, as their category is not among the classes of the config: 1 of 'wheat head'" in line


def test_boxes_of_less_than_a_pixel_are_told_of(tmp_path):
    """mmdet leaves them out of the training."""
    from mmdet.datasets import CocoDataset

    given = changed('annotations', 1, 'bbox', value=[4, 5, 20, 0.5])
    cfg = config(tmp_path, train=given, val=given)
    (line,) = checks.check_detection_data(cfg, ('train', 'val'))
    assert line.endswith('train.json: 1 objects less than a pixel wide or high are not learned')
    options = {key: value for key, value in cfg.train_dataloader.dataset.items() if key not in ('type', 'pipeline')}
    dataset = CocoDataset(**options, pipeline=[])
    assert [len(dataset.get_data_info(i)['instances']) for i in range(2)] == [1, 0]
    given['annotations'][0]['bbox'] = [0.1, 0.2, 0.5, 0.3]
    with pytest.raises(AnnotationError, match='in pixels, not shares of the image'):
        checks.check_detection_data(config(tmp_path, train=given), ('train', 'val'))


def test_masks_of_another_size_than_their_image_are_refused(tmp_path):
    """pycocotools meets them by no detection, and says nothing."""
    masks = {size: dict(size=list(size), counts=[0, 48 * 64]) for size in ((48, 64), (64, 48))}
    checks.check_detection_data(
        config(tmp_path, val=changed('annotations', 1, 'segmentation', value=masks[48, 64])), ('train', 'val')
    )
    wrong = changed('annotations', 1, 'segmentation', value=masks[64, 48])
    with pytest.raises(AnnotationError, match=r'annotations\[1\] has the size \[64, 48\] and its image \[48, 64\] \('):
        checks.check_detection_data(config(tmp_path, val=wrong), ('train', 'val'))
    boxes_alone = config(tmp_path, train=wrong, val=wrong, name='faster-rcnn_vits_fpn_1x_coco')
    checks.check_detection_data(boxes_alone, ('train', 'val'))


def test_images_that_are_too_small_for_a_recipe_are_told_of(tmp_path):
    """mmdet leaves them out of the training."""
    from mmdet.datasets import CocoDataset

    cfg = config(tmp_path, train=changed('images', 1, 'height', value=31))
    (line,) = checks.check_detection_data(cfg, ('train', 'val'))
    assert 'train.json: 1 images with a side below 32 px are not trained on (train_dataloader.dataset.filter' in line
    options = {key: value for key, value in cfg.train_dataloader.dataset.items() if key not in ('type', 'pipeline')}
    assert len(CocoDataset(**options, pipeline=[])) == 1


def test_a_part_of_the_images_is_not_evaluated_by_the_objects_of_all(tmp_path):
    cfg = config(tmp_path)
    cfg.train_dataloader.dataset.indices = cfg.val_dataloader.dataset.indices = 1
    checks.check_detection_data(cfg, ('train',))
    with pytest.raises(ConfigError, match='val_dataloader.dataset.indices leaves images out'):
        checks.check_detection_data(cfg, ('train', 'val'))


def test_a_test_split_without_answers(tmp_path):
    cfg = config(tmp_path)
    cfg.test_dataloader = copy.deepcopy(cfg.val_dataloader)
    (tmp_path / 'val.json').write_text(json.dumps({**content(), 'annotations': []}))
    assert checks.check_detection_data(cfg, ('test',)) == []
