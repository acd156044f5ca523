"""Colours, blur and resizing of views beside PIL's, which the published recipes use."""

import cv2
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from odis_mm.datasets.transforms import RenderViews, photometric, render_view
from odis_mm.structures import View
from odis_mm.utils.errors import ConfigError

ENHANCE = dict(brightness=ImageEnhance.Brightness, contrast=ImageEnhance.Contrast, saturation=ImageEnhance.Color)
FACTORS = (0.0, 0.2, 0.55, 0.8, 1.0, 1.13, 1.4, 1.8)


@pytest.fixture
def picture():
    small = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    return cv2.resize(small, (224, 224), interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize('name', list(ENHANCE))
def test_blends_cut_off_as_pil_does(name, picture):
    """Rounding in their place raises the mean of a picture by 0.2 to 0.5 grey levels a step."""
    for factor in FACTORS:
        expected = np.asarray(ENHANCE[name](Image.fromarray(picture)).enhance(factor)).astype(int)
        found = getattr(photometric, name)(picture, factor)
        difference = found.astype(int) - expected
        assert np.abs(difference).max() <= 1 and (difference != 0).mean() < 0.02, factor
        assert abs(difference.mean()) < 0.02, factor


@pytest.mark.parametrize('sigma', [0.1, 0.2, 0.3, 0.4, 0.49, 0.7, 1.0, 1.5, 2.0])
def test_blur_is_pil_s_at_every_sigma(sigma):
    noise = np.random.default_rng(1).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(noise).filter(ImageFilter.GaussianBlur(sigma))).astype(int)
    inside = np.abs(photometric.blur(noise, sigma).astype(int) - expected)
    inside = inside[8:-8, 8:-8]  # PIL repeats the edges in each pass
    assert inside.max() <= 4 and inside.mean() < 1.1  # PIL rounds between its six passes
    kernel = photometric.blur_kernel(sigma)
    offset = np.arange(len(kernel)) - len(kernel) // 2
    assert kernel.sum() == pytest.approx(1) and (kernel == kernel[::-1]).all()
    assert (kernel * offset**2).sum() == pytest.approx(sigma**2, rel=0.1)


@pytest.mark.parametrize('name', ['bicubic', 'bilinear'])
def test_views_are_resized_as_pil_does(name):
    image = np.random.default_rng(2).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    for crop in ((0, 0, 120, 90), (7, 11, 60, 33), (5, 5, 10, 12)):
        x, y, w, h = crop
        part = Image.fromarray(image[y : y + h, x : x + w])
        expected = np.asarray(part.resize((48, 32), getattr(Image, name.upper()))).astype(int)
        view = View(crop, (32, 48))
        found = RenderViews(interpolation=name)(dict(img=image, views=[view]))['pixels'][0]
        assert np.abs(found - expected).max() <= 1
        other = render_view(image, view, 'bilinear' if name == 'bicubic' else 'bicubic')
        assert np.abs(found - other.astype(int)).max() > 3


def test_an_unknown_interpolation_is_named():
    with pytest.raises(ConfigError, match="'nearest' is unknown"):
        RenderViews(interpolation='nearest')
