"""Images of other kinds than 8-bit RGB: deep, floating, single-channel, multispectral, turned."""

import json

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from odis_mm.cli.verify import verify_main
from odis_mm.datasets import ObjectDataset, objects
from odis_mm.datasets.image_io import LoadObjectImage, image_kind, read_image, read_raw, size_of
from odis_mm.utils.errors import BadImageError, ConfigError

RNG = np.random.default_rng(0)
RGB = cv2.resize(RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8), (60, 40))
GREY = RGB[..., 0]


def repeat(grey):
    return np.repeat(grey[..., None], 3, 2)


@pytest.mark.parametrize('bits', [10, 12, 14, 16])
@pytest.mark.parametrize('suffix', ['png', 'tif'])
def test_deep_values_are_scaled_by_the_bits_that_are_used(tmp_path, bits, suffix):
    deep = np.rint(GREY / 255 * (2**bits - 1)).astype(np.uint16)
    deep[0, 0] = 2**bits - 1
    path = tmp_path / f'x.{suffix}'
    cv2.imwrite(str(path), deep)
    right = GREY.copy()
    right[0, 0] = 255
    np.testing.assert_array_equal(read_image(path), repeat(right))
    assert image_kind(read_raw(path)) == f'1 channel of 16 bits, {bits} of them used'


@pytest.mark.parametrize(
    'scale, kind', [(1 / 255, np.float32), (1.0, np.float32), (1 / 255, np.float64), (1.0, np.float16)]
)
def test_floating_values(tmp_path, scale, kind):
    tifffile.imwrite(tmp_path / 'x.tif', (GREY * scale).astype(kind))
    np.testing.assert_array_equal(read_image(tmp_path / 'x.tif'), repeat(GREY))
    tifffile.imwrite(tmp_path / 'rgb.tif', (RGB * scale).astype(kind), photometric='rgb')
    np.testing.assert_array_equal(read_image(tmp_path / 'rgb.tif'), RGB)


def test_values_that_do_not_tell_ask_for_a_window(tmp_path):
    path, celsius = tmp_path / 'x.tif', (GREY.astype(np.float32) - 100) / 2
    celsius[3, 4] = np.nan
    tifffile.imwrite(path, celsius)
    with pytest.raises(BadImageError, match=r'float32 values from -4.* to .*window=\(low, high\) or percentiles'):
        read_image(path)
    right = GREY.copy()
    right[3, 4] = 0
    np.testing.assert_array_equal(read_image(path, window=(-50, 77.5)), repeat(right))
    finite = celsius[np.isfinite(celsius)]
    low, high = np.percentile(finite, (2, 98))
    found = read_image(path, percentiles=(2, 98))[..., 0].astype(float)
    expected = np.clip((celsius - low) / (high - low), 0, 1) * 255
    keep = np.isfinite(celsius)
    assert np.abs(found - expected)[keep].max() <= 0.51 and found[3, 4] == 0
    flat = tmp_path / 'flat.tif'
    tifffile.imwrite(flat, np.full((8, 8), -3.5, np.float32))
    assert read_image(flat, percentiles=(1, 99)).max() == 0


def test_a_window_is_of_the_whole_data_set(tmp_path):
    """Two exposures of one thing stay two brightnesses."""
    for name, factor in (('dark', 4), ('bright', 16)):
        cv2.imwrite(str(tmp_path / f'{name}.png'), GREY.astype(np.uint16) * factor)
    dark, bright = (read_image(tmp_path / f'{name}.png', window=(0, 4080)) for name in ('dark', 'bright'))
    np.testing.assert_array_equal(bright, repeat(GREY))
    assert np.abs(dark.astype(int) - repeat(GREY).astype(int) / 4).max() <= 0.5
    load = LoadObjectImage(window=(0, 4080))
    results = load(dict(img_path=str(tmp_path / 'dark.png'), bboxes=np.zeros((0, 4)), labels=np.zeros(0), masks=None))
    np.testing.assert_array_equal(results['img'], dark)


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('kind', ['rgb', 'grey', 'deep', 'float'])
@pytest.mark.parametrize('byteorder', ['<', '>'])
def test_the_orientation_of_a_tiff_is_not_applied(tmp_path, orientation, kind, byteorder):
    pixels = dict(rgb=RGB, grey=GREY, deep=GREY.astype(np.uint16) * 257, float=GREY.astype(np.float32))[kind]
    photometric = 'rgb' if kind == 'rgb' else 'minisblack'
    tags = [(274, 'H', 1, orientation, True)]
    tifffile.imwrite(tmp_path / 'x.tif', pixels, photometric=photometric, extratags=tags, byteorder=byteorder)
    right = RGB if kind == 'rgb' else repeat(GREY)
    np.testing.assert_array_equal(read_image(tmp_path / 'x.tif'), right)
    assert size_of(tmp_path / 'x.tif') == right.shape[:2]


def test_forms_of_tiff(tmp_path):
    for name, options in dict(
        strips=dict(rowsperstrip=7),
        tiles=dict(tile=(16, 16)),
        planes=dict(planarconfig='separate', data=RGB.transpose(2, 0, 1).copy()),
        big=dict(bigtiff=True),
        packed=dict(compression='zlib'),
        alpha=dict(data=np.dstack([RGB, GREY]), extrasamples=['unassalpha']),
    ).items():
        path = tmp_path / f'{name}.tif'
        tifffile.imwrite(path, **{'data': RGB, 'photometric': 'rgb', **options})
        np.testing.assert_array_equal(read_image(path), RGB, err_msg=name)
    Image.fromarray(RGB).save(tmp_path / 'lzw.tif', compression='tiff_lzw')
    np.testing.assert_array_equal(read_image(tmp_path / 'lzw.tif'), RGB)
    for right, data in ((RGB, np.dstack([RGB, GREY])), (repeat(GREY), np.dstack([GREY, RGB[..., 1]]))):  # with alpha
        Image.fromarray(data).save(tmp_path / 'alpha.tif', compression='tiff_lzw')
        np.testing.assert_array_equal(read_image(tmp_path / 'alpha.tif'), right)
        np.testing.assert_array_equal(read_image(tmp_path / 'alpha.tif', data.shape[2]), data)
    lab = np.broadcast_to(np.uint8([138, 0, 0]), (8, 8, 3))  # a grey: a colour, if the channels are taken for RGB
    tifffile.imwrite(tmp_path / 'lab.tif', lab, photometric='cielab')
    assert np.abs(read_image(tmp_path / 'lab.tif').astype(int) - 130).max() < 16
    Image.fromarray(GREY > 127).save(tmp_path / 'bits.tif')
    np.testing.assert_array_equal(read_image(tmp_path / 'bits.tif'), repeat((GREY > 127).astype(np.uint8) * 255))
    palette = Image.fromarray(RGB).quantize(16)
    palette.save(tmp_path / 'palette.tif')
    np.testing.assert_array_equal(read_image(tmp_path / 'palette.tif'), np.asarray(palette.convert('RGB')))
    deep = RGB.astype(np.uint16) * 257
    tifffile.imwrite(tmp_path / 'deep.tif', deep, photometric='rgb')
    np.testing.assert_array_equal(read_image(tmp_path / 'deep.tif'), RGB)
    tifffile.imwrite(tmp_path / 'white.tif', 65535 - deep[..., 0], photometric='miniswhite')
    np.testing.assert_array_equal(read_image(tmp_path / 'white.tif'), repeat(GREY))


@pytest.mark.parametrize('channels', [2, 4, 5, 12])
@pytest.mark.parametrize('layout', ['pixels', 'planes', 'pages'])
def test_many_channels(tmp_path, channels, layout):
    bands = RNG.integers(0, 256, (40, 60, channels), dtype=np.uint8)
    path = tmp_path / 'x.tif'
    if layout == 'pixels':
        tifffile.imwrite(path, bands, photometric='minisblack', planarconfig='contig')
    else:
        planes = np.ascontiguousarray(np.moveaxis(bands, 2, 0))
        options = dict(planarconfig='separate') if layout == 'planes' else {}
        tifffile.imwrite(path, planes, photometric='minisblack', **options)
    np.testing.assert_array_equal(read_image(path, channels), bands)
    if channels > 2 and layout != 'pages':  # of which the first one is taken
        with pytest.raises(BadImageError, match=f'has {channels} channels, not 3: set channels={channels}'):
            read_image(path)


@pytest.mark.parametrize('pages', [3, 5])
@pytest.mark.parametrize('kind', [np.uint8, np.uint16, np.float32])
def test_the_first_of_grey_pages_is_taken(tmp_path, pages, kind):
    stack = RNG.integers(0, 256, (pages, 40, 60)).astype(kind)
    tifffile.imwrite(tmp_path / 'x.tif', stack, photometric='minisblack')
    for channels in (1, 3):
        raw = read_raw(tmp_path / 'x.tif', channels)
        np.testing.assert_array_equal(raw, np.broadcast_to(stack[0][..., None], raw.shape))


def test_one_channel_and_alpha(tmp_path):
    Image.fromarray(GREY).save(tmp_path / 'g.png')
    np.testing.assert_array_equal(read_image(tmp_path / 'g.png', channels=1), GREY[..., None])
    Image.fromarray(RGB).save(tmp_path / 'c.png')
    luma = np.asarray(Image.fromarray(RGB).convert('L')).astype(int)
    assert np.abs(read_image(tmp_path / 'c.png', channels=1)[..., 0] - luma).max() <= 1
    rgba = np.dstack([RGB, GREY])
    for name in ('a.png', 'a.webp'):
        Image.fromarray(rgba).save(tmp_path / name, **(dict(lossless=True, exact=True) if 'webp' in name else {}))
        np.testing.assert_array_equal(read_image(tmp_path / name, channels=4), rgba)
        np.testing.assert_array_equal(read_image(tmp_path / name), RGB)
    cv2.imwrite(str(tmp_path / 'deep.png'), cv2.cvtColor(rgba, cv2.COLOR_RGBA2BGRA).astype(np.uint16) * 257)
    np.testing.assert_array_equal(read_image(tmp_path / 'deep.png'), RGB)
    with pytest.raises(BadImageError, match='has 3 channels, not 5'):
        read_image(tmp_path / 'c.png', channels=5)


def test_without_tifffile_the_message_names_it(tmp_path, monkeypatch):
    import sys

    tifffile.imwrite(
        tmp_path / 'five.tif', np.zeros((8, 8, 5), np.uint8), photometric='minisblack', planarconfig='contig'
    )
    tifffile.imwrite(tmp_path / 'float.tif', GREY.astype(np.float32))
    monkeypatch.setitem(sys.modules, 'tifffile', None)
    with pytest.raises(ConfigError, match='pip install tifffile'):
        read_image(tmp_path / 'five.tif', channels=5)
    np.testing.assert_array_equal(read_image(tmp_path / 'float.tif'), repeat(GREY))  # OpenCV knows it


def test_damaged_tiffs_are_bad_images(tmp_path):
    path = tmp_path / 'x.tif'
    refused = 0
    for pixels in (RGB, GREY.astype(np.float32), np.dstack([RGB, GREY, GREY])):
        tifffile.imwrite(path, pixels, photometric='rgb' if pixels.shape[-1] == 3 else 'minisblack')
        whole = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(40):
            data = whole.copy()
            data[RNG.integers(0, 200, 6)] = RNG.integers(0, 256, 6)
            path.write_bytes(data.tobytes()[: RNG.integers(1, len(data) + 100)])
            try:
                assert read_image(path, percentiles=(1, 99)).ndim == 3
            except BadImageError as error:
                refused += 1
                assert str(error).startswith(f'image {path} ')
    assert refused > 40


def test_options_that_make_no_sense_are_refused():
    for options in (
        dict(window=(3, 3)),
        dict(percentiles=(1, 101)),
        dict(window=(0, 1), percentiles=(1, 99)),
        dict(channels=0),
    ):
        with pytest.raises(ConfigError):
            LoadObjectImage(**options)


def test_the_checker_tells_the_kinds(tmp_path, capsys):
    (tmp_path / 'img').mkdir()
    cv2.imwrite(str(tmp_path / 'img/a.png'), GREY)
    for name in 'bc':
        cv2.imwrite(str(tmp_path / f'img/{name}.png'), GREY.astype(np.uint16) * 16)
    verify_main(['--data', str(tmp_path / 'img'), '--workers', '0', '--report', str(tmp_path / 'report.json')])
    assert 'kinds of images: 2 1 channel of 16 bits, 12 of them used; 1 3 channels of 8 bits' in capsys.readouterr().out
    assert json.loads((tmp_path / 'report.json').read_text())['kinds']['1 channel of 16 bits, 12 of them used'] == 2
    tifffile.imwrite(tmp_path / 'img/x.tif', GREY.astype(np.float32) - 100)
    with pytest.raises(SystemExit):
        verify_main(['--data', str(tmp_path / 'img'), '--workers', '0'])
    verify_main(['--data', str(tmp_path / 'img'), '--workers', '0', '--window', '-100', '4080'])


def test_the_first_image_is_looked_at(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(objects, 'print_log', lambda line, **_: said.append(line))
    cv2.imwrite(str(tmp_path / 'a.png'), GREY.astype(np.uint16) * 16)
    ObjectDataset(tmp_path, pipeline=[LoadObjectImage()])
    assert 'a.png has 1 channel of 16 bits, 12 of them used; each file is scaled by what it uses itself' in said[-1]
    said.clear()
    ObjectDataset(tmp_path, pipeline=[LoadObjectImage(window=(0, 4095))])
    assert len(said) == 1
    with pytest.raises(ConfigError, match='has 1 channels, not 5'):
        ObjectDataset(tmp_path, pipeline=[LoadObjectImage(channels=5)], max_bad_share=0.5)
    (tmp_path / 'a.png').write_bytes(b'nothing')
    cv2.imwrite(str(tmp_path / 'b.png'), GREY)
    assert len(ObjectDataset(tmp_path, pipeline=[LoadObjectImage()], max_bad_share=0.5)) == 2
    tifffile.imwrite(tmp_path / 'A.tif', GREY.astype(np.float32) - 100)
    with pytest.raises(ConfigError, match='do not tell what is black and white'):
        ObjectDataset(tmp_path, pipeline=[LoadObjectImage()], max_bad_share=0.5)
