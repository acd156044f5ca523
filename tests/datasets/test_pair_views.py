"""Views of GTSA: each meets every global one, turns with its bookkeeping, and reaches the batch."""

import cv2
import numpy as np
import pytest

import odis_mm  # noqa: F401
from odis_mm.datasets.transforms import PackViews, RenderViews, SamplePairViews, collate_views
from odis_mm.datasets.transforms.pair_views import shared_area
from odis_mm.visualization import draw_views

GROUPS = [dict(role='global', num=2, size=32, scale=(0.3, 1.0)), dict(role='local', num=8, size=16, scale=(0.1, 0.3))]


def sample_views(height, width, seed=0, **options):
    results = dict(height=height, width=width, rng=np.random.default_rng(seed))
    return SamplePairViews(GROUPS, patch_size=8, **options).transform(results)


def test_every_view_meets_every_global_one():
    turns = []
    for seed in range(60):
        height, width = (90, 160) if seed % 2 else (160, 120)
        views = sample_views(height, width, seed)['views']
        crops = np.array([view.crop for view in views], np.float64)
        share = shared_area(crops, crops[:2]) / (height * width)
        assert share[1, 0] > 0.02 and share[2:].min() > 0.01
        assert (
            (crops[:, :2] >= 0).all()
            and (crops[:, 0] + crops[:, 2] <= width).all()
            and (crops[:, 1] + crops[:, 3] <= height).all()
        )
        assert [view.size for view in views] == [(32, 32)] * 2 + [(16, 16)] * 8 and not any(view.flip for view in views)
        turns += [view.rot90 for view in views]
    assert np.bincount(turns, minlength=4).min() > 0.2 * len(turns) and set(turns) == {0, 1, 2, 3}


def test_the_rule_is_what_redraws():
    free = [sample_views(90, 160, seed, min_overlap=(0.0, 0.0), tries=1)['views'] for seed in range(60)]
    crops = np.array([[view.crop for view in views] for views in free], np.float64)
    assert min(shared_area(c, c[:2])[2:].min() for c in crops) == 0


@pytest.mark.parametrize('height, width', [(3, 2000), (2000, 3), (1, 1)])
def test_a_thin_image_ends_with_the_best_try(height, width):
    views = sample_views(height, width)['views']
    assert len(views) == 10
    drawn = np.array([[[0, 0, 4, 4], [2, 0, 4, 4]], [[90, 0, 4, 4], [5, 0, 4, 4]]])
    picked = SamplePairViews.pick(drawn, np.array([[4, 0, 10, 10]]), least=1e9)
    np.testing.assert_array_equal(picked, [[2, 0, 4, 4], [5, 0, 4, 4]])


def test_views_reach_the_batch(synthetic_sample):
    samples = []
    for seed in range(2):
        sample = synthetic_sample(seed=seed)
        for step in (SamplePairViews(GROUPS, patch_size=8), RenderViews(), PackViews()):
            views = sample.get('views') if isinstance(sample, dict) else None
            sample = step(sample)
        samples.append((views, sample))
    batch = collate_views([sample for _, sample in samples])
    assert [tuple(x.shape) for x in batch['inputs']] == [(4, 3, 32, 32), (16, 3, 16, 16)]
    assert 'object_mask' not in batch['data_samples']
    for b, (views, _) in enumerate(samples):
        assert batch['data_samples']['rot90'][b].tolist() == [view.rot90 for view in views]
        assert batch['data_samples']['crop'][b].tolist() == [list(view.crop) for view in views]


def test_picture_of_the_views(synthetic_sample, tmp_path):
    sample = RenderViews()(SamplePairViews(GROUPS, patch_size=8)(synthetic_sample()))
    draw_views(sample, str(tmp_path / 'views.png'))
    assert cv2.imread(str(tmp_path / 'views.png')).std() > 10


@pytest.mark.parametrize(
    'options, told',
    [
        (dict(views=[dict(GROUPS[0], flip=0.5)]), 'remove flip'),
        (dict(views=[dict(GROUPS[0], size=(32, 16))]), 'use square ones'),
        (dict(views=GROUPS[1:]), 'one group of globals'),
        (dict(views=GROUPS, tries=0), 'at least 1'),
        (dict(views=GROUPS, min_overlap=(1.0, 0.0)), 'two shares'),
        (dict(views=[dict(GROUPS[0], sizes=3)]), 'unknown key'),
    ],
)
def test_bad_views_are_told(options, told):
    with pytest.raises(ValueError, match=told):
        SamplePairViews(patch_size=8, **options)
