"""Images of 16 bits and many channels through pretraining, detector and prediction, read alike."""

import json

import cv2
import numpy as np
import pytest
import tifffile
from mmengine.config import Config
from mmengine.registry import init_default_scope

from helpers import SMALL_DETECTOR
from odis_mm.cli.tasks import predict_main
from odis_mm.datasets.image_io import LoadObjectImage, read_image
from odis_mm.datasets.layout import find_splits
from odis_mm.datasets.reading import find_reading
from odis_mm.recipes import pretraining_config
from odis_mm.recipes.detector import detector_config
from odis_mm.tasks import finetune, pretrain
from odis_mm.transfer import read_checkpoint, read_meta
from odis_mm.utils.errors import BadImageError

pytest.importorskip('mmcv._ext')
RNG = np.random.default_rng(0)
TINY = {
    'model.backbone.arch.embed_dims': 32,
    'model.backbone.arch.num_layers': 2,
    'model.backbone.arch.feedforward_channels': 64,
    'model.neck.in_channels': 32,
    'default_hooks.views.pictures': 1,
}


def write(path, channels: int, kind=np.uint16, low=1000, high=3000):
    pixels = cv2.resize(RNG.integers(low, high, (6, 6, channels)).astype(np.float32), (64, 64))
    pixels = pixels.reshape(64, 64, channels).astype(kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    layout = dict(planarconfig='contig') if channels > 1 else {}
    tifffile.imwrite(path, pixels if channels > 1 else pixels[..., 0], photometric='minisblack', **layout)


def data_of(root, channels: int, **kwargs):
    images, annotations = [], []
    for i in range(6):
        write(root / 'images' / f'{i}.tif', channels, **kwargs)
        images.append(dict(id=i, file_name=f'{i}.tif', height=64, width=64))
        for x in (4, 34):
            box = [x, 10, 24, 30]
            annotations.append(dict(id=len(annotations), image_id=i, category_id=1, bbox=box, area=720, iscrowd=0))
    content = dict(images=images, annotations=annotations, categories=[dict(id=1, name='cell')])
    (root / 'annotations').mkdir()
    for part in ('train', 'val'):
        (root / 'annotations' / f'{part}.json').write_text(json.dumps(content))
    return root


def test_sixteen_bits_and_five_channels_go_all_the_way(tmp_path, capsys):
    root = data_of(tmp_path / 'data', 5)
    export = pretrain(root, steps=4, size=16, batch=3, work_dir=tmp_path / 'pretrain', options=TINY)
    meta = read_meta(export)
    reading = meta['reading']
    assert reading['channels'] == 5 and 900 < reading['window'][0] < 1300 and 2700 < reading['window'][1] < 3100
    assert len(meta['mean']) == 5 and 80 < meta['mean'][0] < 180, 'of what the window makes of it'

    done = finetune(root, init=export, steps=2, size=64, batch=2, work_dir=tmp_path / 'det', options=SMALL_DETECTOR)
    cfg = Config.fromfile(str(done.config))
    assert cfg.model.data_preprocessor.mean == meta['mean'] and cfg.model.data_preprocessor.std == meta['std']
    for part in ('train', 'val', 'test'):
        step = cfg[f'{part}_dataloader'].dataset.pipeline[0]
        assert (step.type, step.channels, step.window) == ('LoadDetectionImage', 5, reading['window'])
    weights = read_checkpoint(done.checkpoint)
    assert weights['backbone.patch_embed.projection.weight'].shape[1] == 5
    assert len(list((tmp_path / 'det' / 'predictions' / 'vis').iterdir())) == 6

    more = tmp_path / 'more'
    write(more / 'a' / '1.tif', 5)
    write(more / 'b' / '1.tif', 5)
    write(more / '2.tif', 4)
    (more / '3.tif').write_bytes((more / '2.tif').read_bytes()[:300])
    predict_main([str(tmp_path / 'det'), str(more), '--out', str(tmp_path / 'out')])
    content = json.loads((tmp_path / 'out' / 'predictions.json').read_text())
    assert [image['file_name'] for image in content['images']] == [str(more / p / '1.tif') for p in 'ab']
    assert {p.name for p in (tmp_path / 'out' / 'vis').iterdir()} == {'1.tif', '1_2.tif'}
    said = capsys.readouterr()
    assert '2.tif has 4 channels, not 5' in said.out + said.err and '3.tif cannot be decoded' in said.out + said.err
    with pytest.raises(SystemExit) as stop:
        predict_main([str(tmp_path / 'det'), str(more / '3.tif'), '--out', str(tmp_path / 'none')])
    assert stop.value.code == 2 and 'none of 1 images can be read' in capsys.readouterr().err


@pytest.mark.parametrize(
    'channels, kind, high, options',
    [
        (1, np.uint16, 3000, ['window']),
        (1, np.float32, 3000, ['window']),
        (3, np.uint8, 255, []),
        (1, np.uint8, 255, []),
    ],
)
def test_the_reading_follows_from_the_files(tmp_path, channels, kind, high, options):
    root = data_of(tmp_path / 'data', channels, kind=kind, low=min(1000, high // 2), high=high)
    cfg, _ = pretraining_config(root)
    step = cfg.train_dataloader.dataset.pipeline[0]
    assert sorted(set(step) - {'type'}) == options and step.type == 'LoadObjectImage'
    splits = find_splits(root)
    cfg = detector_config(splits['train'], splits['val'])
    assert cfg.train_dataloader.dataset.pipeline[0].type == 'LoadDetectionImage'
    assert sorted(set(cfg.test_dataloader.dataset.pipeline[0]) - {'type'}) == options
    assert 'in_channels' not in cfg.model.backbone and len(cfg.model.data_preprocessor.mean) == 3


def test_images_of_8_bits_among_deeper_ones_are_not_black(tmp_path):
    paths = [tmp_path / f'{i}.tif' for i in range(6)]
    for i, path in enumerate(paths):
        write(path, 3, *((np.uint16, 1000, 60000) if i == 2 else (np.uint8, 20, 250)))
    reading = find_reading(paths)
    assert reading.options == dict(percentiles=[0.1, 99.9])
    assert '5 of 6 that were looked at have 8 bits, the others more' in reading.told
    assert all(read_image(path, percentiles=reading.percentiles).mean() > 60 for path in paths)


def test_unreadable_files_tell_nothing(tmp_path):
    (tmp_path / 'a.tif').write_bytes(b'')
    assert find_reading([tmp_path / 'a.tif', tmp_path / 'gone.tif']).options == {}


def test_detectors_read_the_pixels_of_pretraining(tmp_path):
    from odis_mm.detection import LoadDetectionImage

    init_default_scope('mmdet')
    for channels, kind in ((3, np.uint8), (1, np.uint16), (5, np.uint16)):
        path = tmp_path / f'{channels}.tif'
        write(path, channels, kind, 10, 250)
        asked = dict(channels=3 if channels == 1 else channels, window=(20, 240))
        ours = LoadObjectImage(**asked)(dict(img_path=str(path), height=64, width=64))['img']
        theirs = LoadDetectionImage(**asked)(dict(img_path=str(path), height=64, width=64))
        np.testing.assert_array_equal(theirs['img'], ours[..., ::-1] if channels != 5 else ours)
        assert theirs['ori_shape'] == theirs['img_shape'] == (64, 64)
    with pytest.raises(BadImageError, match='is 64 x 64 pixels but its annotation says 64 x 32'):
        LoadDetectionImage()(dict(img_path=str(tmp_path / '3.tif'), height=32, width=64))
