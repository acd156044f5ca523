"""Scores of objects: read, filtered by, and drawn by."""

import json

import numpy as np
import pytest
from PIL import Image

from odis_mm.datasets import ObjectDataset
from odis_mm.datasets.transforms import SampleViews


@pytest.fixture
def scored(tmp_path):
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / 'a.png')
    boxes = [([1, 1, 8, 8], 0.9), ([20, 5, 9, 9], 0.25), ([30, 20, 9, 9], None)]
    content = dict(
        images=[dict(id=1, file_name='a.png', height=40, width=60)],
        annotations=[
            dict(id=i, image_id=1, category_id=1, bbox=box, **({} if score is None else dict(score=score)))
            for i, (box, score) in enumerate(boxes)
        ],
        categories=[dict(id=1, name='object')],
    )
    (tmp_path / 'ann.json').write_text(json.dumps(content))
    return dict(data_root=tmp_path, ann_file='ann.json')


def test_scores_are_read_and_filtered(scored):
    info = ObjectDataset(**scored).get_data_info(0)
    np.testing.assert_allclose(info['scores'], [0.9, 0.25, 1])
    dataset = ObjectDataset(**scored, min_score=0.5)
    info = dataset.get_data_info(0)
    np.testing.assert_allclose(info['scores'], [0.9, 1])
    assert info['bboxes'][:, 0].tolist() == [1, 30] and len(info['labels']) == 2
    assert dataset.counts['objects below min_score=0.5 left out'] == 1


def test_a_score_that_is_no_number_is_refused(scored):
    path = scored['data_root'] / 'ann.json'
    path.write_text(path.read_text().replace('0.25', '"high"'))
    with pytest.raises(ValueError, match=r'annotations\[1\]'):
        ObjectDataset(**scored)


def test_targets_are_drawn_by_score():
    views = [dict(role='global', num=1, size=32, scale=(0.5, 1))]
    sample = SampleViews(views, target_rule='score')
    rng, boxes = np.random.default_rng(0), np.array([[0, 0, 30, 30], [0, 0, 2, 2], [0, 0, 9, 9]], np.float32)
    scores = np.array([0.1, 0.6, 0.3], np.float32)
    drawn = np.bincount([sample.draw_target(rng, boxes, scores) for _ in range(4000)], minlength=3) / 4000
    np.testing.assert_allclose(drawn, scores, atol=0.03)
    drawn = np.bincount([sample.draw_target(rng, boxes, None) for _ in range(4000)], minlength=3) / 4000
    np.testing.assert_allclose(drawn, [1 / 3] * 3, atol=0.03)
