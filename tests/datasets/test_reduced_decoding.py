"""Photographs decoded at a part of their size: no view has fewer pixels than before, and shows the same."""

import cv2
import numpy as np
import pytest

from odis_mm.datasets.image_io import LoadObjectImage, PostponedJPEG
from odis_mm.datasets.transforms import RenderViews
from odis_mm.datasets.transforms.views import reduction
from odis_mm.structures import View
from odis_mm.utils.errors import BadImageError, ConfigError

HEIGHT, WIDTH = 1201, 1603


@pytest.fixture(scope='module')
def photo(tmp_path_factory):
    """Smooth colours with an edge, as a JPEG that claims to lie on its side."""
    rng = np.random.default_rng(0)
    image = cv2.resize(
        rng.integers(0, 256, (13, 17, 3), dtype=np.uint8), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC
    )
    image[:, 801:] //= 2
    path = tmp_path_factory.mktemp('photo') / 'large.jpg'
    data = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    turned = b'Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0'
    path.write_bytes(data[:2] + b'\xff\xe1' + (len(turned) + 2).to_bytes(2, 'big') + turned + data[2:])
    return path


def run(path, views, reduced, interpolation='bicubic', **told):
    results = dict(img_path=str(path), height=None, width=None, bboxes=np.zeros((0, 4)), masks=None, views=views)
    results = LoadObjectImage(reduced=reduced)({**results, **told})
    assert (results['height'], results['width']) == (HEIGHT, WIDTH)
    return RenderViews(interpolation)(results)['pixels']


VIEWS = [
    View((3, 5, 901, 1003), (224, 224), True),
    View((701, 0, 902, 1201), (224, 224), False, 1),
    View((650, 333, 399, 407), (96, 96), True, 3),
]


@pytest.mark.parametrize('interpolation', ['bicubic', 'bilinear'])
def test_reduced_views_are_those_of_the_whole_image(photo, interpolation):
    assert reduction(VIEWS) == 4
    for small, whole in zip(*(run(photo, VIEWS, reduced, interpolation) for reduced in (True, False))):
        apart = np.abs(small.astype(int) - whole)
        assert small.shape == whole.shape and apart.mean() < 1 and np.quantile(apart, 0.98) <= 4
    moved = [View((view.crop[0] - 3, *view.crop[1:]), view.size, view.flip, view.rot90) for view in VIEWS]
    apart = [np.abs(a.astype(int) - b).mean() for a, b in zip(run(photo, moved, True), run(photo, VIEWS, False))]
    right = [np.abs(a.astype(int) - b).mean() for a, b in zip(run(photo, VIEWS, True), run(photo, VIEWS, False))]
    assert all(b < a for a, b in zip(apart, right))  # less than a pixel of the smaller image would be seen


def test_no_view_gets_fewer_pixels_than_its_own():
    rng = np.random.default_rng(0)
    for _ in range(500):
        side = 10 ** rng.uniform(1, 3.5, (3, 2))
        views = [View((0, 0, int(w), int(h)), tuple(rng.choice([48, 96, 224], 2).tolist())) for w, h in side]
        factor = reduction(views)
        kept = [min(v.crop[2] / v.size[1], v.crop[3] / v.size[0]) / factor for v in views]
        assert factor == 1 or min(kept) >= 1
        assert factor == 8 or min(kept) < 2


def test_a_crop_of_its_own_size_is_decoded_whole_and_equal(photo):
    views = [*VIEWS, View((10, 10, 97, 150), (96, 96))]
    for small, whole in zip(*(run(photo, views, reduced) for reduced in (True, False))):
        assert np.array_equal(small, whole)


def test_bad_photographs_are_told_as_ever(photo, tmp_path):
    (tmp_path / 'cut.jpg').write_bytes(photo.read_bytes()[:-200])
    with pytest.raises(BadImageError, match='truncated'):
        run(tmp_path / 'cut.jpg', VIEWS, True)
    with pytest.raises(BadImageError, match='its annotation says'):
        run(photo, VIEWS, True, height=5, width=7)
    with pytest.raises(BadImageError, match='cannot be decoded'):
        PostponedJPEG('x.jpg', photo.read_bytes(), (HEIGHT, WIDTH + 8)).decode(2)
    with pytest.raises(ConfigError, match='three channels'):
        LoadObjectImage(channels=1, reduced=True)


def test_other_formats_are_read_as_ever(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / 'x.png'), image)
    for a, b in zip(*(run(tmp_path / 'x.png', VIEWS, reduced) for reduced in (True, False))):
        assert np.array_equal(a, b)
