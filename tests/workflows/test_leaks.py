"""A leak planted in any of the usual disguises is found, and like images are not taken for the same."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from odis_mm.workflows import leaks


def photograph(seed: int, moved: int = 0) -> Image.Image:
    """Blobs over a smooth background, 160 x 120; one blob can be moved by some pixels."""
    rng = np.random.default_rng(seed)
    ys, xs = np.mgrid[:120, :160]
    image = np.stack([110 + 40 * np.sin(xs / rng.uniform(15, 60) + ys / rng.uniform(15, 60)) for _ in range(3)], -1)
    for k in range(8):
        x, y, r = rng.uniform(10, 150), rng.uniform(10, 110), rng.uniform(4, 18)
        image[(xs - x - moved * (k == 0)) ** 2 + (ys - y) ** 2 < r**2] = rng.integers(0, 255, 3)
    return Image.fromarray(image.clip(0, 255).astype(np.uint8))


DISGUISES = {
    'jpeg': lambda image, path: image.save(path, quality=40),
    'half.png': lambda image, path: image.resize((80, 60)).save(path),
    'mirrored.png': lambda image, path: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path),
    'turned.png': lambda image, path: image.rotate(90, expand=True).save(path),
    'darker.png': lambda image, path: ImageEnhance.Brightness(image).enhance(0.9).save(path),
}


@pytest.fixture
def validation(tmp_path):
    paths = [tmp_path / f'val_{i}.png' for i in range(4)]
    for i, path in enumerate(paths):
        photograph(100 + i).save(path)
    return leaks.fingerprints(paths)


@pytest.mark.parametrize('name', DISGUISES)
def test_a_disguised_image_is_found(tmp_path, validation, name):
    trained = [tmp_path / f'train_{i}.png' for i in range(10)]
    for i, path in enumerate(trained):
        photograph(i).save(path)
    planted = tmp_path / f'innocent.{"jpg" if name == "jpeg" else "png"}'
    DISGUISES[name](photograph(102), planted)
    (found,) = leaks.duplicates(validation, leaks.fingerprints([*trained, planted]))
    assert found.evaluated.name == 'val_2.png' and found.trained == planted and found.kind == 'picture'
    assert 'val_2.png = ' in leaks.message([found]) and 'innocent' in leaks.message([found])


def test_the_same_bytes_under_another_name(tmp_path, validation):
    copy = tmp_path / 'copy.bin'
    copy.write_bytes((tmp_path / 'val_0.png').read_bytes())
    (found,) = leaks.duplicates(validation, leaks.fingerprints([copy]))
    assert found.kind == 'file' and found.evaluated.name == 'val_0.png'


def test_another_picture_of_the_scene_is_told_apart(tmp_path, validation):
    photograph(101, moved=6).save(tmp_path / 'later.png')
    (found,) = leaks.duplicates(validation, leaks.fingerprints([tmp_path / 'later.png']))
    assert found.kind == 'scene'


def test_a_copy_is_found_behind_a_neighbouring_frame_that_is_more_alike(tmp_path, validation):
    photograph(101, moved=3).save(tmp_path / 'frame.png')
    photograph(101).save(tmp_path / 'copy.jpg', quality=20)
    prints = leaks.fingerprints([tmp_path / 'frame.png', tmp_path / 'copy.jpg'])
    (frame,) = leaks.duplicates(validation, prints.without([tmp_path / 'copy.jpg']))
    (alone,) = leaks.duplicates(validation, prints.without([tmp_path / 'frame.png']))
    assert frame.kind == 'scene' and alone.kind == 'picture' and frame.similarity > alone.similarity
    (found,) = leaks.duplicates(validation, prints)
    assert found == alone


def test_unreadable_and_blank_images_match_nothing(tmp_path, validation):
    (tmp_path / 'text.jpg').write_text('no image')
    Image.new('RGB', (50, 50), 'white').save(tmp_path / 'white.png')
    Image.new('RGB', (60, 60), 'white').save(tmp_path / 'white_too.png')
    prints = leaks.fingerprints([tmp_path / 'text.jpg', tmp_path / 'white.png', tmp_path / 'gone.png'])
    assert not leaks.duplicates(validation, prints)
    assert not leaks.duplicates(leaks.fingerprints([tmp_path / 'white_too.png']), prints)
    assert not leaks.duplicates(validation, leaks.fingerprints([]))


def test_images_of_16_bits_are_compared(tmp_path):
    for name, seed, white in (('val', 100, 4095), ('other', 0, 4095), ('brighter', 100, 60_000)):
        values = np.asarray(photograph(seed).convert('L'), float) / 255 * (white - 1000) + 1000
        Image.fromarray(values.astype(np.uint16)).save(tmp_path / f'{name}.png')
    evaluated = leaks.fingerprints([tmp_path / 'val.png'])
    (found,) = leaks.duplicates(evaluated, leaks.fingerprints([tmp_path / 'other.png', tmp_path / 'brighter.png']))
    assert found.trained.name == 'brighter.png' and found.kind == 'picture'
