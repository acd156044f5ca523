"""The proxy for detection: regions pooled as they lie, closed-form classifiers against scikit-learn, hook, ranks,
tool."""

import json

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmpretrain.registry import MODELS
from sklearn.metrics import jaccard_score

from helpers import BACKBONE, make_sample, make_vit, measure_regions, odis_runner
from odis_mm.cli import checkpoints as commands
from odis_mm.engine.hooks import RegionProxyHook
from odis_mm.engine.hooks.frozen import plot_history
from odis_mm.evaluation import FrozenBackbone, RegionImages, region_features, region_knn
from odis_mm.evaluation.object_features import AnnotatedObjects
from odis_mm.evaluation.regions import (
    Regions,
    background_boxes,
    fit_linear,
    mean_iou,
    object_area,
    pool_boxes,
    region_metrics,
    region_split,
)
from odis_mm.models import ViewPreprocessor
from odis_mm.transfer import save_backbone
from odis_mm.utils.errors import BadImageError, ConfigError


def sample(boxes, labels, seed=0, size=32, **kwargs):
    img = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return dict(img=img, bboxes=np.array(boxes, np.float32).reshape(-1, 4), labels=labels, **kwargs)


def test_features_see_their_box():
    vit = make_vit()
    frozen = FrozenBackbone(vit)
    images = [
        sample([[0, 0, 9, 8], [8, 16, 16, 32]], [3, 1]),
        sample([], [], seed=1),
        sample([[0, 0, 32, 32]], [2], seed=2),
    ]
    regions = region_features(frozen, RegionImages(images, (32,), 8), batch_size=2)
    assert regions.labels.tolist() == [3, 1, 2] and len(regions.patches) == 48
    pixels = torch.from_numpy(images[0]['img']).permute(2, 0, 1)[None]
    inputs = ViewPreprocessor()(dict(inputs=pixels))['inputs']
    with torch.no_grad():
        for i, patches in enumerate(([0, 1], [9, 13])):  # of the 4 x 4 grid
            mask = torch.zeros(1, 16, dtype=torch.bool)
            mask[0, patches] = True
            token = vit.read_objects(inputs, mask[:, None])[1][0, 0]
            torch.testing.assert_close(regions.token[i], token, atol=1e-5, rtol=1e-5)
            # nearly that of a pass of its own, in which the patches see this [OBJ]
            assert F.cosine_similarity(token, vit(inputs, mask)[-1][0, 0], dim=0) > 0.99
        map_ = vit(inputs)[-1][:, 1:].mT.unflatten(2, (4, 4))
    torch.testing.assert_close(regions.patches[:16], map_.flatten(2).mT[0], atol=1e-5, rtol=1e-5)
    pooled = pool_boxes(map_, [torch.tensor([[8.0, 16.0, 16.0, 32.0]]) / 32])[0]
    torch.testing.assert_close(regions.pooled[1], pooled, atol=1e-5, rtol=1e-5)
    assert (
        regions.inside[:16].nonzero().flatten().tolist() == [0, 9, 13]
        and not regions.inside[16:32].any()
        and regions.inside[32:].all()
    )
    some = sample([[0, 0, 9, 8], [8, 16, 16, 32]], [3, -1])
    with pytest.raises(ConfigError, match='^1 of 2 objects have no category'):
        region_features(frozen, RegionImages([some], (32,), 8))
    with pytest.raises(ValueError, match='no labelled object'):
        region_features(frozen, RegionImages(images[1:2], (32,), 8))
    with pytest.raises(ValueError, match='no labelled object'):
        region_features(frozen, RegionImages([sample([[0, 0, 9, 8]], [-1])], (32,), 8))
    with pytest.raises(ValueError, match='patches of 8'):
        region_features(frozen, RegionImages(images, (36,), 8))


def test_pooling_a_ramp_gives_its_value_at_the_middle():
    """On a map that rises linearly, the mean over a box is the value at its centre: cell c lies at c + 1/2."""
    columns = torch.arange(12.0).expand(1, 1, 8, 12) + 0.5
    rows = torch.arange(8.0)[:, None].expand(1, 1, 8, 12) + 0.5
    boxes = torch.tensor([[3 / 12, 2 / 8, 8 / 12, 5 / 8], [0.5, 0.25, 0.75, 0.75]])
    pooled = pool_boxes(torch.cat((columns, rows), 1), [boxes])
    torch.testing.assert_close(pooled, torch.tensor([[5.5, 3.5], [7.5, 4.0]]))


def test_background_has_the_sizes_of_the_objects_and_none_of_them():
    boxes = np.array([[0.0, 0.0, 30.0, 20.0], [50.0, 30.0, 60.0, 40.0]])
    area = object_area(dict(bboxes=boxes, height=60, width=80))
    found = background_boxes(boxes, area)
    assert found.shape == (2, 4) and np.array_equal(found[:, 2:] - found[:, :2], [[30, 20], [10, 10]])
    assert all(area[int(y1) : int(y2), int(x1) : int(x2)].mean() <= 0.1 for x1, y1, x2, y2 in found)
    assert len(background_boxes(np.array([[0.0, 0.0, 80.0, 60.0]]), np.ones((60, 80), bool))) == 0  # nowhere to go


def test_masks_count_where_there_are_any():
    item = make_sample(seed=3)
    area = object_area(item)
    boxes = object_area({**item, 'masks': None})
    assert 0 < area.sum() < boxes.sum() and boxes[area].mean() > 0.95


def test_a_mask_that_is_none_is_named_by_image_and_object():
    item = {**make_sample(seed=3), 'img_path': 'street.jpg'}
    item['masks'] = [*item['masks'][:-1], [[1, 2, 3, 4, 5, 6, 7]]]
    for measure in (RegionImages([item], (64,)), AnnotatedObjects([item])):
        with pytest.raises(
            BadImageError, match=f'^image street.jpg, object {len(item["masks"]) - 1}: a polygon is not'
        ):
            measure[0]


def test_a_crowd_is_neither_objects_nor_background(tmp_path):
    """An object to the left, a crowd region to the right that overlaps it by four pixels; nothing else in the image."""
    boxes, frozen = [[0, 0, 16, 32], [12, 0, 32, 32]], FrozenBackbone(make_vit())
    item = sample(boxes, np.array([0, -1]), crowd=np.array([False, True]))
    images = RegionImages([item], (32,), 8, per_image=1)
    assert images[0]['boxes'].tolist() == [[0, 0, 0.5, 1]] and not len(images[0]['background'])
    found = region_features(frozen, images)
    assert found.labels.tolist() == [0] and found.inside.tolist() == [True] * 8, 'the cells of the object alone'

    cv2.imwrite(str(tmp_path / 'a.png'), item['img'])
    entries = [
        dict(id=i, image_id=image, category_id=1, bbox=[x, y, r - x, b - y], iscrowd=crowd)
        for i, (image, crowd, (x, y, r, b)) in enumerate([(1, 0, boxes[0]), (1, 1, boxes[1]), (2, 1, boxes[1])])
    ]
    content = dict(
        images=[dict(id=i, file_name='a.png', height=32, width=32) for i in (1, 2)],
        annotations=entries,
        categories=[dict(id=1, name='bird')],
    )
    (tmp_path / 'a.json').write_text(json.dumps(content))
    (part,) = region_split(frozen, str(tmp_path), ['a.json'], [''], (32,), [None])
    assert part.labels() == [0] and region_features(frozen, part).inside.tolist() == [True] * 8
    (tmp_path / 'a.json').write_text(json.dumps({**content, 'annotations': entries[1:]}))
    with pytest.raises(ConfigError, match='^a.json has crowd regions alone'):
        region_split(frozen, str(tmp_path), ['a.json'], [''], (32,), [None])


@pytest.mark.parametrize('ridge', [1e-2, 1.0])
def test_the_linear_classifier_solves_its_normal_equations(ridge):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(80, 5, generator=g) * torch.tensor([1.0, 10.0, 0.1, 1.0, 3.0]) + 4
    positive = torch.rand(80, generator=g) < 0.2
    standard = (x.double() - x.double().mean(0)) / x.double().std(0, correction=0)
    design, y = torch.cat((standard, torch.ones(80, 1)), dim=1).double(), positive.double() * 2 - 1
    weight = torch.where(positive, 0.5 / positive.sum(), 0.5 / (~positive).sum()).double()
    penalty = ridge * torch.eye(6, dtype=torch.float64)
    penalty[-1, -1] = 0  # none on the bias
    solution = torch.linalg.solve((design.T * weight) @ design + penalty, (design.T * weight) @ y)
    scores = fit_linear(x, positive, ridge).decision_function(x.double().numpy())
    np.testing.assert_allclose(scores, design @ solution, atol=1e-7)


def test_iou_is_scikit_learns():
    g = torch.Generator().manual_seed(0)
    scores, positive = torch.randint(0, 10, (200,), generator=g), torch.rand(200, generator=g) < 0.3
    predicted = scores > 4
    assert mean_iou(predicted, positive) == pytest.approx(
        100 * jaccard_score(positive, predicted, average='macro'), rel=1e-6
    )


def test_auc_counts_pairs():
    """Share of pairs of an object and a background box in which the object scores higher, ties counting half."""
    g = torch.Generator().manual_seed(0)

    def part(n):
        pooled, background = torch.randn(n, 3, generator=g), torch.randn(n, 3, generator=g) - 0.5
        inside = torch.rand(n, generator=g) < 0.5
        return Regions(None, pooled.round(), torch.arange(n) % 2, background.round(), pooled, inside)

    train, val = part(30), part(20)
    both, positive = torch.cat((train.pooled, train.background)), torch.arange(60) < 30
    scores = fit_linear(both, positive).decision_function(torch.cat((val.pooled, val.background)).double().numpy())
    pairs = scores[:20, None] - scores[None, 20:]
    expected = 100 * ((pairs > 1e-12).mean() + (np.abs(pairs) <= 1e-12).mean() / 2)
    assert region_metrics(train, val, k=1)['object_auc'] == pytest.approx(expected)


def test_no_mask_is_judged_where_no_cell_lies_within_an_object():
    """Objects smaller than half a cell: an empty side would count as one that was missed."""
    g = torch.Generator().manual_seed(0)
    features, inside = torch.randn(20, 3, generator=g), torch.arange(20) < 10
    train = Regions(None, features, torch.arange(20) % 2, features, features, inside)
    small = Regions(None, features, torch.arange(20) % 2, features, features, torch.zeros(20, dtype=torch.bool))
    assert 'mask_miou' in region_metrics(train, train, k=1)
    assert 'mask_miou' not in {**region_metrics(train, small, k=1), **region_metrics(small, train, k=1)}


def test_repeated_objects_find_each_other():
    train = [sample([[0, 0, 16, 32]], [i], seed=i) for i in range(4)]
    found = region_knn(make_vit(), train, train, ViewPreprocessor(), 32, k=1)
    assert found['object_token'] == found['box_pool'] == 100 and {'object_auc', 'mask_miou'} < set(found)


def test_scales_and_convnets():
    images = [sample([[2, 2, 20, 30], [4, 4, 12, 9]], [0, 1], seed=i) for i in range(3)]
    vit = FrozenBackbone(make_vit())
    one, two = (region_features(vit, RegionImages(images, sizes, 8)) for sizes in ((32,), (32, 64)))
    assert two.pooled.shape == (6, 64) and two.token.shape == (6, 64) and len(two.patches) == 3 * 64
    torch.testing.assert_close(two.pooled[:, :32], torch.nn.functional.normalize(one.pooled, dim=-1))
    resnet = region_features(
        FrozenBackbone(MODELS.build(dict(type='mmpretrain.ResNet', depth=18))), RegionImages(images, (64,))
    )
    assert resnet.token is None and resnet.pooled.shape == (6, 512) and len(resnet.patches) == 3 * 4


# ---- a folder in COCO style: hook, ranks, tool ----------------------------------------------------


def hooked(path, coco_folder):
    hook = RegionProxyHook(str(coco_folder), scales=(32,), k=3, interval=3, by_epoch=False, num_workers=0, batch_size=4)
    runner = odis_runner(path, cfg=dict(model=dict(backbone=BACKBONE)))
    runner.register_hook(hook)
    return runner, hook


def test_the_hook_measures_over_training(coco_folder, tmp_path):
    runner, hook = hooked(tmp_path, coco_folder)
    runner.train()
    record = json.loads((tmp_path / 'regions.json').read_text())
    assert [point['iteration'] for point in record['history']] == [0, 3, 6, 8]  # the start, every third, and the last
    last = {key: value for key, value in record['history'][-1].items() if key not in ('iteration', 'epoch', 'seconds')}
    assert last == pytest.approx(measure_regions(runner.model.branch('teacher'), coco_folder))
    assert set(last) == {'object_token', 'box_pool', 'object_auc', 'mask_miou'}
    # bright shapes on dark noise
    assert record['random'].keys() == last.keys() and 50 < record['random']['object_auc'] <= 100
    assert cv2.imread(str(tmp_path / 'regions.png')) is not None
    val = hook.val  # the share of the most frequent class, counted by hand
    labels = [label for i in range(len(val)) for label in val[i]['labels'].tolist()]
    share = 100 * max(labels.count(label) for label in labels) / len(labels)
    assert record['trivial']['box_pool'] == ['majority class', pytest.approx(share)]
    assert record['trivial']['object_auc'] == ['chance', 50.0]


def test_a_plot_names_its_lines_and_units(monkeypatch, tmp_path):
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, 'savefig', lambda figure, path: figures.append(figure))
    record = dict(
        of='teacher',
        random=dict(object_token=21.0, object_auc=60.0),
        trivial=dict(object_token=('majority class', 32.0), object_auc=('chance', 50.0)),
        history=[dict(iteration=i, epoch=i, seconds=1.0, object_token=20.0 + i, object_auc=70.0) for i in (0, 4, 8)],
    )
    plot_history(record, str(tmp_path / 'a.png'), 'regions', RegionProxyHook('unused').describe)
    first, second = figures[0].axes
    assert first.get_ylabel() == '20-NN accuracy (%)' and second.get_ylabel() == 'area under the ROC curve (%)'
    assert first.get_xlabel() == 'iteration' and first.get_xlim()[0] == 0
    assert first.lines[0].get_xdata().tolist() == [0, 4, 8]
    assert [line.get_ydata()[0] for line in first.lines[1:]] == [21.0, 32.0]
    told = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert told == ['the teacher', 'random weights', 'majority class', 'chance']


def test_the_tool(coco_folder, tmp_path, capsys):
    save_backbone(tmp_path / 'a_backbone.pth', make_vit().state_dict(), dict(num_heads=4))
    arguments = [
        str(tmp_path / 'a_backbone.pth'),
        '--data',
        str(coco_folder),
        '--size',
        '32',
        '--k',
        '3',
        '--workers',
        '0',
    ]
    commands.regions_main([*arguments, '--out', str(tmp_path / 'r.json')])
    said = json.loads((tmp_path / 'r.json').read_text())
    assert said['metrics'] == pytest.approx(measure_regions(make_vit(), coco_folder))
    assert said['random'] == pytest.approx(said['metrics'])  # this file holds what seed 0 draws
    assert '| random weights | ' in capsys.readouterr().out
    content = json.loads((coco_folder / 'annotations' / 'instances_val2017.json').read_text())
    content['categories'].append(dict(id=3, name='cross'))
    (tmp_path / 'more.json').write_text(json.dumps(content))
    with pytest.raises(SystemExit):
        commands.regions_main(
            [*arguments, '--ann-files', 'annotations/instances_train2017.json', str(tmp_path / 'more.json')]
        )
    assert 'name different classes (2 and 3)' in capsys.readouterr().err


def test_few_cells_of_many_images_are_not_of_one_column():
    image = np.zeros((32, 32, 3), np.uint8)
    item = dict(img=image, bboxes=np.array([[16.0, 0, 32, 32]]), labels=np.array([0]))  # the right half
    frozen = FrozenBackbone(make_vit())
    for count, kept in ((16, 1), (8, 4)):
        found = region_features(frozen, RegionImages([item] * count, (32,), frozen.patch), max_patches=count * kept)
        assert len(found.inside) == count * kept and found.inside.float().mean() == 0.5
