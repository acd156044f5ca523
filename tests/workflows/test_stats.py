"""COCO AP of resampled images against COCOeval itself, and intervals against simulated truth."""

import contextlib
import copy
import io
import math

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from odis_mm.workflows import stats


def make_data(seed: int, images: int = 12, crowd: bool = True):
    """A COCO-style data set of three classes, one of them rare, and noisy detections with distinct scores."""
    rng = np.random.default_rng(seed)
    truth = dict(
        images=[dict(id=7 + 3 * i, width=100, height=100) for i in range(images)],
        annotations=[],
        categories=[dict(id=c, name=n) for c, n in ((2, 'b'), (5, 'a'), (9, 'rare'))],
    )
    found = []
    for image in truth['images']:
        for _ in range(int(rng.integers(0, 7))):
            box = [*rng.uniform(0, 60, 2), *rng.uniform(8, 40, 2)]
            category = int(rng.choice([2, 5, 9], p=[0.6, 0.35, 0.05]))
            truth['annotations'].append(
                dict(
                    id=len(truth['annotations']) + 1,
                    image_id=image['id'],
                    category_id=category,
                    bbox=box,
                    area=box[2] * box[3],
                    iscrowd=int(crowd and rng.random() < 0.1),
                )
            )
            for _ in range(int(rng.integers(0, 3))):
                moved = [v + rng.normal(0, 3) for v in box[:2]] + [max(v + rng.normal(0, 3), 1) for v in box[2:]]
                found.append(dict(image_id=image['id'], category_id=category, bbox=moved, score=float(rng.random())))
    return truth, found


def coco_eval(truth: dict, found: list) -> float:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(copy.deepcopy(found)), 'bbox')
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return 100 * evaluation.stats[0], 100 * evaluation.stats[1]


def repeated(truth: dict, found: list, weights) -> tuple:
    """The data set in which image i is there weights[i] times, copies side by side, under new ids."""
    images, annotations, detections = [], [], []
    for image, times in zip(truth['images'], weights):
        for _ in range(times):
            new = len(images) + 1
            images.append({**image, 'id': new})
            for a in truth['annotations']:
                if a['image_id'] == image['id']:
                    annotations.append({**a, 'id': len(annotations) + 1, 'image_id': new})
            detections += [{**d, 'image_id': new} for d in found if d['image_id'] == image['id']]
    return dict(truth, images=images, annotations=annotations), detections


def as_coco(truth: dict) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
    return coco


@pytest.mark.parametrize('seed', range(4))
def test_weights_are_copies_of_images(seed):
    truth, found = make_data(seed)
    matches = stats.match(as_coco(truth), found)
    weights = np.concatenate([np.ones((1, 12), int), stats.resamples(12, 6, seed)])
    ours = stats.average_precision(matches, weights, chunk=3)
    at50 = stats.average_precision(matches, weights, slice(0, 1))
    for row, ap, ap50 in zip(weights, ours, at50):
        wanted, wanted50 = coco_eval(*repeated(truth, found, row))
        assert ap == pytest.approx(wanted, abs=1e-9) and ap50 == pytest.approx(wanted50, abs=1e-9)


def test_images_may_have_names_for_ids():
    truth, found = make_data(0)
    expected = stats.average_precision(stats.match(as_coco(truth), found))
    truth, found = make_data(0)
    for entry in (*truth['annotations'], *found):
        entry['image_id'] = f'image {entry["image_id"]:03d}'
    for image in truth['images']:
        image['id'] = f'image {image["id"]:03d}'
    np.testing.assert_allclose(stats.average_precision(stats.match(as_coco(truth), found)), expected)


def test_no_detections_and_classes_without_objects():
    truth, found = make_data(1)
    assert stats.average_precision(stats.match(as_coco(truth), []))[0] == 0
    names = stats.class_ap(stats.match(as_coco(truth), found))
    there = {a['category_id'] for a in truth['annotations'] if not a['iscrowd']}
    assert set(names) == {c['name'] for c in truth['categories'] if c['id'] in there}
    truth['annotations'] = []
    assert math.isnan(stats.average_precision(stats.match(as_coco(truth), found))[0])


def simulate(rng, effect, starts=4, p=2, d=2, images=60, image_sd=4.0, detector_sd=1.0, pretraining_sd=1.5, boot=200):
    """AP as a mean of per-image scores, with known effects: the bootstrap is exact for it."""
    weights = stats.resamples(images, boot, 1)
    per_image = rng.normal(0, 15, images)  # shared by all
    shared = rng.normal(0, 3, d)  # which images were labelled
    table = {}
    for s in range(starts):
        own = rng.normal(0, image_sd, images)  # on which images this start is better
        pretrained = s > 0
        n = p if pretrained else 1
        runs = np.zeros((n, d, images))
        lift = rng.normal(0, pretraining_sd, n) if pretrained else np.zeros(1)
        for i in range(n):
            for j in range(d):
                noise = shared[j] + lift[i] + rng.normal(0, detector_sd)
                runs[i, j] = 30 + (effect if pretrained else 0) + per_image + own + noise
        table[str(s)] = stats.Runs(runs.mean(-1), runs @ weights.T / images, images, pretrained)
    return table


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    inside = [d.low <= 2 <= d.high for _ in range(400) for d in [stats.difference(simulate(rng, effect=2.0), '1', '0')]]
    assert 0.92 <= np.mean(inside) <= 0.99


@pytest.mark.parametrize('images', [2, 5, 20])
def test_the_interval_covers_the_truth_of_few_images(images):
    rng, few = np.random.default_rng(0), dict(starts=2, p=1, d=1, detector_sd=0, pretraining_sd=0, boot=1000)
    found = [stats.difference(simulate(rng, 2.0, images=images, **few), '1', '0') for _ in range(400)]
    assert 0.92 <= np.mean([d.low <= 2 <= d.high for d in found]) <= 0.98


def test_verdicts_follow_from_the_interval():
    rng = np.random.default_rng(1)
    assert stats.difference(simulate(rng, 20.0), '1', '0').verdict == 'above'
    assert stats.difference(simulate(rng, 20.0), '0', '1').verdict == 'below'
    assert stats.difference(simulate(rng, 0.0), '1', '0').verdict == 'no difference shown'
    alone = stats.difference(simulate(rng, 3.0, p=1, d=1), '1', '0')
    assert math.isnan(alone.parts['detector seeds']) and alone.low < alone.value < alone.high


def test_labels_worth_is_read_off_the_reference_curve():
    assert stats.labels_worth([10, 100], [20, 40], 30) == pytest.approx(10**1.5)
    assert stats.labels_worth([100, 10], [40, 20], 40) == pytest.approx(100)
    assert stats.labels_worth([10, 100], [20, 40], 41) is None and stats.labels_worth([10], [20], 20) is None


def test_rank_correlation():
    assert stats.spearman([1, 2, 3], [10, 20, 21]) == pytest.approx(1) and math.isnan(stats.spearman([1, 1], [1, 2]))
