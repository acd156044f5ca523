"""Boxes made worse by known amounts."""

import sys

import numpy as np
import pytest

from odis_mm.objects import degrade
from odis_mm.objects.degrade import overlap
from odis_mm.utils.errors import ConfigError


@pytest.fixture
def content():
    rng = np.random.default_rng(0)
    annotations = []
    for image in range(40):
        for _ in range(5):
            w, h = rng.uniform(8, 40, 2)
            x, y = rng.random(2) * (100 - w, 80 - h)
            annotations.append(
                dict(id=len(annotations), image_id=image, category_id=2, bbox=[x, y, w, h], segmentation=[[0] * 6])
            )
    annotations.append(dict(id=999, image_id=0, category_id=2, bbox=[0, 0, 90, 70], iscrowd=1))
    return dict(
        images=[dict(id=i, width=100, height=80, file_name=f'{i}') for i in range(40)],
        annotations=annotations,
        categories=[],
    )


@pytest.mark.parametrize('iou', [0.9, 0.7, 0.5])
def test_jitter_has_the_iou_that_was_asked_for(content, iou):
    moved = degrade(content, iou=iou)['annotations']
    assert len(moved) == 200 and not any('segmentation' in entry for entry in moved)
    found = [
        overlap(np.array(a['bbox'], float), np.array([b['bbox']]))[0] for a, b in zip(moved, content['annotations'])
    ]
    np.testing.assert_allclose(found, iou, atol=0.03)
    for x, y, w, h in (entry['bbox'] for entry in moved):
        assert x >= 0 and y >= 0 and x + w <= 100.01 and y + h <= 80.01 and w > 1 and h > 1


def test_shares_of_missing_and_false_boxes(content):
    boxes = {tuple(np.round(entry['bbox'], 2)) for entry in content['annotations'] if not entry.get('iscrowd')}
    few = {tuple(entry['bbox']) for entry in degrade(content, missing=0.3)['annotations']}
    fewer = {tuple(entry['bbox']) for entry in degrade(content, missing=0.6)['annotations']}
    assert len(few) == 140 and len(fewer) == 80 and fewer < few < boxes
    mixed = degrade(content, false=0.6)['annotations']
    false = [entry for entry in mixed if tuple(entry['bbox']) not in boxes]
    assert len(false) / len(mixed) == pytest.approx(0.6, abs=0.03)
    for entry in false:
        true = np.array(
            [e['bbox'] for e in content['annotations'] if e['image_id'] == entry['image_id'] and not e.get('iscrowd')]
        )
        assert overlap(np.array(entry['bbox']), true).max() <= 0.31
    assert (
        degrade(content, false=0.3, seed=1)
        == degrade(content, false=0.3, seed=1)
        != degrade(content, false=0.3, seed=2)
    )


def test_arguments(content):
    with pytest.raises(ConfigError, match='missing must be a share'):
        degrade(content, missing=1.0)
    with pytest.raises(ConfigError, match='iou must be above 0'):
        degrade(content, iou=0)


def test_a_lack_of_room_for_false_boxes_is_told(content, monkeypatch):
    content['annotations'] = [
        dict(id=i, image_id=i, category_id=2, bbox=[0, 0, 100 if i else 50, 80 if i else 40]) for i in range(40)
    ]
    lines = []
    monkeypatch.setattr(sys.modules['odis_mm.objects.degrade'], 'print_log', lambda text, **_: lines.append(text))
    found = degrade(content, false=0.5)['annotations']
    placed = len(found) - 40
    (said,) = lines
    assert 0 < placed < 40 and f'there is room for {placed} of 40 only' in said
    assert f'{placed / len(found):.0%} of the boxes are false, not 50%' in said


def test_crowds_are_those_of_all_readers(content):
    for entry in content['annotations'][:200]:
        entry['iscrowd'] = '0'  # text, as some tools write it
    content['annotations'][-1].update(iscrowd=0, ignore=1)
    assert len(degrade(content)['annotations']) == 200
