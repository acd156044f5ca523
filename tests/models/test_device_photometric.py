"""Photometrics on the device: the numbers of the host's, and its pixels but for rounding."""

import copy

import numpy as np
import pytest
import torch
from mmpretrain.registry import MODELS, TRANSFORMS

import odis_mm  # noqa: F401
from odis_mm.datasets.transforms import PackViews, RenderViews, collate_views
from odis_mm.models.device_photometric import apply_photometrics, turn_hue

VIEWS = [dict(role='global', num=2, size=64, scale=(0.25, 1.0)), dict(role='local', num=3, size=32, scale=(0.05, 0.25))]
OFF = dict(
    brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0, jitter_prob=1.0, gray_prob=0.0, blur_prob=(0.0, 0.0, 0.0)
)
ONE_STEP = dict(
    brightness=dict(OFF, brightness=0.6),
    contrast=dict(OFF, contrast=0.6),
    saturation=dict(OFF, saturation=0.6),
    hue=dict(OFF, hue=0.5),
    gray=dict(OFF, gray_prob=0.5),
    blur=dict(OFF, blur_prob=(1.0, 0.5, 0.5)),
    solarize=dict(OFF, solarize_prob=(1.0, 0.5, 0.5)),
)


def batch(make_sample, images=4, **photometric):
    photometric.setdefault('solarize_prob', (0.0, 0.0, 0.0))
    steps = [
        TRANSFORMS.build(dict(type='SampleViews', patch_size=8, views=VIEWS)),
        RenderViews(),
        TRANSFORMS.build(dict(type='PhotometricViews', **photometric)),
        PackViews(),
    ]
    items = []
    for seed in range(images):
        item = make_sample(seed=seed)
        for step in steps:
            item = step(item)
        items.append(item)
    return collate_views(items)


def on_device(data):
    preprocessor = MODELS.build(dict(type='ViewPreprocessor', mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)))
    return preprocessor(copy.deepcopy(data), True)


@pytest.mark.parametrize('name', list(ONE_STEP))
def test_each_step_gives_the_pixels_of_the_host(name, synthetic_sample):
    host = batch(synthetic_sample, **ONE_STEP[name])
    found = on_device(batch(synthetic_sample, on_device=True, **ONE_STEP[name]))
    plain = batch(synthetic_sample, **OFF)
    changed = 0.0
    for expected, pixels, before in zip(host['inputs'], found['inputs'], plain['inputs']):
        difference = (expected.float() - pixels).abs()
        assert difference.mean() < (2.0 if name == 'hue' else 0.6)  # OpenCV's HSV has 8 bits a channel
        assert difference.flatten().quantile(0.99) <= (10.0 if name == 'hue' else 2.0)
        changed += float((before.float() - pixels).abs().mean())
    assert changed > 1.0


def test_all_steps_together_are_the_host_s_distribution(synthetic_sample):
    recipe = dict(
        brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, blur_prob=(1.0, 0.1, 0.5), solarize_prob=(0.0, 0.2, 0.0)
    )
    host = batch(synthetic_sample, images=8, **recipe)
    found = on_device(batch(synthetic_sample, images=8, on_device=True, **recipe))
    for expected, pixels in zip(host['inputs'], found['inputs']):
        assert (
            (expected.float() - pixels).abs().mean((1, 2, 3)) < 3.0
        ).all()  # view by view: the same numbers, not only alike ones
    assert 'photometric' not in found['data_samples']


def test_mixed_precision_leaves_the_pixels_as_they_are(synthetic_sample):
    """A training step calls the preprocessor under its autocast."""
    data = batch(synthetic_sample, on_device=True, gray_prob=0.5, blur_prob=(1.0, 0.5, 0.5))
    expected = on_device(data)['inputs']
    with torch.autocast('cpu', torch.bfloat16):
        assert all(map(torch.equal, on_device(data)['inputs'], expected))


def test_device_draws_what_the_host_draws(synthetic_sample):
    step = TRANSFORMS.build(dict(type='PhotometricViews', on_device=True))
    item = dict(rng=np.random.default_rng(5), view_roles=['global', 'global', 'local'], pixels=[])
    packed = step(item)['photometric']
    drawn = step.draw(np.random.default_rng(5), item['view_roles'])
    assert packed.shape == (3, 13) and packed.dtype == np.float32
    np.testing.assert_array_equal(packed[:, 2] > 0, drawn['blur'])
    np.testing.assert_allclose(packed[:, 4:8], drawn['factors'], rtol=1e-6)
    np.testing.assert_array_equal(packed[:, 8:12], drawn['order'])
    np.testing.assert_allclose(packed[:, 12], drawn['sigma'], rtol=1e-6)


def test_numbers_stay_with_their_view(synthetic_sample):
    data = batch(synthetic_sample, on_device=True)
    images = len(data['data_samples']['img_id'])
    single = [batch(lambda seed, s=s: synthetic_sample(seed=s), images=1, on_device=True) for s in range(images)]
    for resolution, numbers in enumerate(data['data_samples']['photometric']):
        for b, other in enumerate(single):
            torch.testing.assert_close(numbers[b::images], other['data_samples']['photometric'][resolution])


def test_views_without_a_step_are_left_alone():
    views = torch.rand(3, 3, 8, 8) * 255
    torch.testing.assert_close(apply_photometrics(views, torch.zeros(3, 13)), views)


def test_a_full_turn_of_the_hue_changes_nothing():
    views = torch.rand(2, 3, 8, 8) * 255
    torch.testing.assert_close(turn_hue(views, torch.tensor([1.0, -1.0])), views, atol=1e-3, rtol=0)
    red = torch.tensor([255.0, 0.0, 0.0]).view(1, 3, 1, 1)
    torch.testing.assert_close(
        turn_hue(red, torch.tensor([1 / 3])).flatten(), torch.tensor([0.0, 255.0, 0.0]), atol=1e-2, rtol=0
    )
