"""What a look at the data says before training, against counts by hand."""

import json

import numpy as np
import pytest
from mmpretrain.registry import TRANSFORMS
from PIL import Image

from odis_mm.datasets import ObjectDataset
from odis_mm.datasets.survey import FEW, spread, survey, visibility


def dataset(tmp_path, side, count=6, told=True):
    """Images of 100 x 80 pixels, each with one square object of ``side`` in its corner."""
    for i in range(count):
        Image.new('RGB', (100, 80)).save(tmp_path / f'{i}.png')
    images = [dict(id=i, file_name=f'{i}.png', **(dict(width=100, height=80) if told else {})) for i in range(count)]
    boxes = [dict(id=i, image_id=i, category_id=1, bbox=[0, 0, side, side]) for i in range(count)]
    content = dict(images=images, annotations=boxes, categories=[dict(id=1, name='thing')])
    (tmp_path / 'boxes.json').write_text(json.dumps(content))
    return ObjectDataset(data_root=str(tmp_path), ann_file='boxes.json', pipeline=[])


def sampler(**changes):
    views = [dict(role='global', num=2, size=16, scale=(0.2, 0.4))]
    return TRANSFORMS.build({**dict(type='SampleViews', patch_size=8, views=views), **changes})


@pytest.mark.parametrize('told', (True, False))
def test_sizes_and_shares(tmp_path, told):
    found = survey(dataset(tmp_path, 20, told=told))
    assert (found.images, found.annotated, found.objects) == (6, 6, 6)
    assert found.sizes.tolist() == [[80, 100]] * 6
    np.testing.assert_allclose(found.shares, 400 / 8000)
    assert 'short side 80 px' in found.words() and '5 % of the image' in found.words()


def test_objects_too_small_for_the_cover_are_seen_by_no_image(tmp_path):
    data = dataset(tmp_path, 4)  # 16 of 8000 pixels: 1 % of the smallest crop
    assert visibility(data, sampler(min_cover=0.04)).share == 0
    assert visibility(data, sampler(min_cover=0.0, tries=200)).share > 0


def test_the_share_is_that_of_the_pipeline(tmp_path):
    data, sample = dataset(tmp_path, 12, count=40), sampler(min_cover=0.03, patch_size=2)
    shown, least = [], []
    for i in range(len(data)):
        drawn = sample.transform({**data.get_data_info(i), 'rng': np.random.default_rng((0, i))})
        shown.append(all(drawn['object_visible']))
        least.append(min(mask.sum() for mask in drawn['patch_masks']))
    assert 0 < np.mean(shown) < 1
    few = np.array(least)[shown] <= FEW
    found = visibility(data, sample)
    assert found.patches == np.median(np.array(least)[shown]) > 0
    assert found.share == np.mean(shown) and 0 < found.few == np.mean(few) < 1


def test_images_without_objects_count_as_seen(tmp_path):
    Image.new('RGB', (20, 20)).save(tmp_path / 'a.png')
    assert visibility(ObjectDataset(data_root=str(tmp_path), pipeline=[]), sampler()).share == 1


def test_indices_are_spread():
    assert spread(3, 10).tolist() == [0, 1, 2]
    assert spread(101, 5).tolist() == [0, 25, 50, 75, 100]
