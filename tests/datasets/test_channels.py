"""Images of one or many channels: views, photometrics, the backbone that follows, its weights, and the statistics that
a config needs."""

import copy

import cv2
import numpy as np
import pytest
import tifffile
import torch

from helpers import make_vit
from odis_mm.cli.stats import stats_main
from odis_mm.config import follow_channels, load_config
from odis_mm.datasets import ObjectDataset
from odis_mm.datasets.reading import find_reading
from odis_mm.datasets.statistics import statistics
from odis_mm.datasets.transforms import PhotometricViews, collate_views
from odis_mm.datasets.transforms.photometric import COLUMNS, WIDTH
from odis_mm.models.data_preprocessor import ViewPreprocessor
from odis_mm.models.device_photometric import apply_photometrics
from odis_mm.transfer import load_backbone
from odis_mm.transfer.loading import inflate
from odis_mm.utils.errors import CheckpointError, ConfigError

RNG = np.random.default_rng(0)


def folder_of(path, channels, kind=np.uint8):
    for i in range(3):
        bands = cv2.resize(RNG.integers(0, 256, (5, 6, max(channels, 2)), dtype=np.uint8), (64, 48))[
            ..., :channels
        ].astype(kind)
        options = (
            dict(photometric='minisblack', planarconfig='contig') if channels > 1 else dict(photometric='minisblack')
        )
        tifffile.imwrite(path / f'{i}.tif', bands if channels > 1 else bands[..., 0], **options)
    return path


@pytest.mark.parametrize('channels', [1, 3, 4, 5])
@pytest.mark.parametrize('recipe', ['odis_demo', 'gtsa_demo', 'alfm_demo'])
def test_the_pipelines_take_any_number(tmp_path, channels, recipe):
    pipeline = load_config(recipe).train_dataloader.dataset.pipeline
    pipeline[0].channels = channels
    suffix = tmp_path
    if channels == 3:
        for i in range(3):
            cv2.imwrite(str(tmp_path / f'{i}.png'), RNG.integers(0, 256, (48, 64, 3), dtype=np.uint8))
    else:
        folder_of(suffix, channels)
    items = [ObjectDataset(tmp_path, pipeline=pipeline)[i] for i in range(3)]
    batch = collate_views(items)
    for views in batch['inputs']:
        assert views.shape[1] == channels and views.dtype == torch.uint8 and views.float().std() > 1


@pytest.mark.parametrize('channels', [1, 2, 5])
def test_what_is_about_colours_is_left_out(channels):
    img = cv2.resize(RNG.integers(60, 200, (6, 7, max(channels, 2)), dtype=np.uint8), (32, 24))[..., :channels]
    colours = PhotometricViews(
        brightness=0,
        contrast=0,
        saturation=0.9,
        hue=0.4,
        jitter_prob=1,
        gray_prob=1,
        blur_prob=(0, 0, 0),
        solarize_prob=(0, 0, 0),
    )
    results = dict(pixels=[img], view_roles=['global'], rng=np.random.default_rng(0))
    np.testing.assert_array_equal(colours(dict(results))['pixels'][0], img)
    light = PhotometricViews(
        saturation=0.9, hue=0.4, jitter_prob=1, gray_prob=1, blur_prob=(1, 1, 1), solarize_prob=(1, 1, 1)
    )
    host = light(dict(results, rng=np.random.default_rng(1)))['pixels'][0]
    assert host.shape == img.shape and (host != img).any()
    drawn = light.draw(np.random.default_rng(1), ['global'])
    views = torch.from_numpy(img.copy()).permute(2, 0, 1)[None].float()
    device = apply_photometrics(views, torch.from_numpy(light.pack(drawn)))[0].permute(1, 2, 0).numpy()
    assert np.abs(device - host).mean() < 2, 'the device does the same'


def test_columns_are_declared_once():
    drawn = PhotometricViews().draw(np.random.default_rng(0), ['global', 'global', 'local'])
    packed = PhotometricViews.pack(drawn)
    assert packed.shape == (3, WIDTH)
    for name, column in COLUMNS.items():
        np.testing.assert_allclose(packed[:, column], drawn[name], rtol=1e-6)


def test_an_empty_channel_is_not_divided_by_nothing(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    pixels[..., 0] = 7
    cv2.imwrite(str(tmp_path / 'a.png'), pixels)
    found = statistics([str(tmp_path / 'a.png')])
    assert found.std[2] == 255 and max(found.std[:2]) < 100 and found.mean[2] == 7
    with pytest.raises(ConfigError, match='std must be above 0'):
        ViewPreprocessor(std=(58.0, 57.0, 0.0))


def test_the_backbone_follows():
    cfg = load_config('odis_demo')
    before = copy.deepcopy(cfg._cfg_dict)
    follow_channels(cfg)
    assert cfg._cfg_dict == before
    cfg.train_dataloader.dataset.pipeline[0].channels = 5
    with pytest.raises(ConfigError, match='mean holds 3 numbers for images of 5 channels: odis-mm stats'):
        follow_channels(cfg)
    cfg.model.data_preprocessor.update(mean=[100.0] * 5, std=[50.0] * 5)
    follow_channels(cfg)
    assert cfg.model.backbone.in_channels == 5
    cfg.model.backbone.in_channels = 4
    with pytest.raises(ConfigError, match='in_channels=4, but the training images have 5'):
        follow_channels(cfg)


@pytest.mark.parametrize('channels', [1, 2, 4, 5, 6, 9])
def test_weights_of_rgb_are_inflated(channels):
    rgb, other = make_vit(), make_vit(in_channels=channels)
    report = load_backbone(other, rgb.state_dict())
    name = 'patch_embed.projection.weight'
    assert report.resized[name] == ((32, 3, 8, 8), (32, channels, 8, 8))
    grey = torch.rand(2, 1, 32, 32)
    same = [vit(grey.expand(-1, count, -1, -1))[0] for vit, count in ((rgb, 3), (other, channels))]
    if channels % 3 == 0 or channels == 1:  # every channel as often
        torch.testing.assert_close(*same)
    timm = pytest.importorskip('timm.models._manipulate')
    torch.testing.assert_close(
        inflate(rgb.state_dict()[name], channels), timm.adapt_input_conv(channels, rgb.state_dict()[name])
    )
    with pytest.raises(CheckpointError, match='input channels'):
        load_backbone(rgb, other.state_dict())


def test_statistics(tmp_path, capsys):
    folder_of(tmp_path, 5)
    stats_main(['--data', str(tmp_path), '--channels', '5'])
    line = capsys.readouterr().out.splitlines()[-1]
    values = np.stack([tifffile.imread(path) for path in sorted(tmp_path.glob('*.tif'))]).reshape(-1, 5).astype(float)
    options = dict(part.split('=') for part in line.split()[1:])
    mean, std = (eval(options[f'model.data_preprocessor.{name}']) for name in ('mean', 'std'))
    np.testing.assert_allclose(mean, values.mean(0), rtol=1e-3)
    np.testing.assert_allclose(std, values.std(0), rtol=1e-3)
    assert options['train_dataloader.dataset.pipeline.0.channels'] == '5'
    cfg = load_config('odis_demo', {key: eval(value) for key, value in options.items() if 'preprocessor' in key})
    assert cfg.model.data_preprocessor.mean == mean


def test_a_window_for_the_whole_data_set(tmp_path, capsys):
    for i, low in enumerate((-20, 0, 35)):
        tifffile.imwrite(tmp_path / f'{i}.tif', RNG.uniform(low, low + 10, (40, 50)).astype(np.float32))
    stats_main(['--data', str(tmp_path), '--channels', '1'])
    options = dict(part.split('=') for part in capsys.readouterr().out.splitlines()[-1].split()[1:])
    low, high = eval(options['train_dataloader.dataset.pipeline.0.window'])
    assert -20 <= low < -19.5 and 44.5 < high <= 45
    (mean,) = eval(options['model.data_preprocessor.mean'])
    assert abs(mean - 255 * (10 - low) / (high - low)) < 3


def test_images_of_8_bits_among_others_are_not_made_black(tmp_path, capsys):
    for i, kind in enumerate((np.uint8, np.uint8, np.uint16)):
        values = RNG.integers(0, np.iinfo(kind).max, (40, 50, 3), kind)
        tifffile.imwrite(tmp_path / f'{i}.tif', values, photometric='rgb')
    stats_main(['--data', str(tmp_path)])
    *_, told, line = capsys.readouterr().out.splitlines()
    assert told == 'some images have 8 bits, others more: the range of each becomes 0 to 255'
    assert line.endswith('pipeline.0.percentiles=[0.1,99.9]') and 'window' not in line
    mean = eval(line.split()[1].partition('=')[2])
    assert max(abs(value - 127.5) for value in mean) < 5, 'uniform noise in all three'
    reading = find_reading(sorted(tmp_path.glob('*.tif')))
    assert reading.window is None and reading.percentiles == (0.1, 99.9) and reading.told.startswith('images: ')
    with pytest.raises(SystemExit):
        stats_main(['--data', str(tmp_path), '--window', '5', '2'])
    assert 'window=[5.0, 2.0] of LoadObjectImage must be two numbers, the lower one first' in capsys.readouterr().err
