"""The inspector: silent where the geometry is right, and by name where an error is planted."""

import copy
from pathlib import Path

import numpy as np
import pytest
from matplotlib.patches import Polygon, Rectangle
from PIL import Image
from pycocotools import mask as coco_mask

from odis_mm.config import load_config
from odis_mm.datasets import segmentation_to_mask
from odis_mm.datasets.transforms import BlockMasks, RenderViews, SamplePairViews, SampleViews
from odis_mm.datasets.transforms import views as view_transforms
from odis_mm.recipes import pretraining_config
from odis_mm.structures import geometry
from odis_mm.utils.paths import walk_images
from odis_mm.visualization import views
from odis_mm.visualization.inspection import check_sample, through_pixels, write_inspection

_OBJECTS = [
    dict(role='global', num=2, size=64, scale=(0.1, 0.8)),
    dict(role='local', num=3, size=32, scale=(0.05, 0.3)),
]
_PAIRS = [
    dict(role='global', num=2, size=64, scale=(0.3, 1), ratio=(3 / 4, 4 / 3)),
    dict(role='local', num=2, size=32, scale=(0.1, 0.3), ratio=(3 / 4, 4 / 3)),
]


def _objects(sample, region='box'):
    for step in (SampleViews(_OBJECTS, patch_size=8, region=region), RenderViews(), BlockMasks(skip_prob=0.0)):
        sample = step.transform(sample)
    return sample


def _turned(sample):
    return RenderViews().transform(SamplePairViews(_PAIRS, patch_size=8).transform(sample))


def _flipped(sample):
    views = [dict(role='global', num=2, size=64, scale=(0.4, 1), flip=0.5)]
    return RenderViews().transform(SampleViews(views, target_rule='whole_image', patch_size=8).transform(sample))


@pytest.mark.parametrize(
    'make', [_objects, lambda s: _objects(s, 'mask'), _turned, _flipped], ids=['boxes', 'masks', 'turned', 'flipped']
)
def test_nothing_differs(synthetic_sample, make):
    count = 0
    for seed in range(12):
        sample = make(synthetic_sample(seed=seed))
        region = 'mask' if make is not _objects else 'box'
        checks = check_sample(sample, region, (0.04, 0.0))
        assert not [str(check) for check in checks if check.differs], seed
        count += len(checks)
    assert count > 200


def _shift(function, where):
    def shifted(*args, **kwargs):
        return function(*args, **kwargs) + np.array([8.0, 0.0])

    return shifted


def test_a_shift_of_8_px_is_found_and_named(synthetic_sample, monkeypatch, tmp_path):
    monkeypatch.setattr(geometry, 'points_to_view', _shift(geometry.points_to_view, 0))
    sample = _objects(synthetic_sample(seed=1))
    differ, total, faults = write_inspection([sample], tmp_path, 'planted')
    assert differ and any(
        "edge of the target's box is drawn at" in fault and '(+8.' in fault or '(+7.' in fault for fault in faults
    )
    page = (tmp_path / 'inspection.html').read_text()
    assert f'{differ} of {total} drawn numbers differ from the pixels' in page and 'edge of the target' in page
    turned = check_sample(_turned(synthetic_sample(seed=2)))
    assert any(check.differs and 'shared rectangle' in check.what for check in turned)


def test_shifted_patch_masks_are_found(synthetic_sample, monkeypatch):
    real = view_transforms.box_patch_mask
    monkeypatch.setattr(
        view_transforms, 'box_patch_mask', lambda box, *args: real(np.asarray(box) + 8 * np.array([1, 0, 1, 0]), *args)
    )
    found = [
        check for seed in range(6) for check in check_sample(_objects(synthetic_sample(seed=seed))) if check.differs
    ]
    assert found and {check.what for check in found} <= {"number of the object's patches", 'visibility of the object'}


def test_turns_undone_the_wrong_way_are_found(synthetic_sample, monkeypatch):
    from odis_mm.visualization import inspection

    real = inspection.orient
    monkeypatch.setattr(
        inspection, 'orient', lambda maps, flip=False, rot90=0, inverse=False: real(maps, flip, -rot90, inverse)
    )
    found = [
        check for seed in range(6) for check in check_sample(_turned(synthetic_sample(seed=seed))) if check.differs
    ]
    assert found and all(check.what.startswith('distance of matched cells') for check in found)


def test_pixels_turn_as_one_sees_it():
    image = np.zeros((4, 6), np.float32)
    image[:, 5] = 1  # the right edge
    view = geometry.View((0, 0, 6, 4), (4, 6), False, 1)
    assert (through_pixels(image, view)[0] == 1).all() and through_pixels(image, view).shape == (6, 4)
    assert (through_pixels(image, geometry.View((0, 0, 6, 4), (4, 6), True, 0))[:, 0] == 1).all()


def test_all_objects_are_drawn_and_masks_as_well_as_polygons(synthetic_sample, tmp_path, monkeypatch):
    sample = _objects(synthetic_sample(seed=3), 'mask')
    mask = segmentation_to_mask(sample['masks'][sample['target']], *sample['img'].shape[:2])
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    sample['masks'] = [dict(rle, counts=rle['counts'].decode())] * len(sample['bboxes'])
    drawn, rings = [], []
    monkeypatch.setattr(views, 'Rectangle', lambda *args, **kw: drawn.append(args) or Rectangle(*args, **kw))
    monkeypatch.setattr(views, 'Polygon', lambda ring, **kw: rings.append(ring) or Polygon(ring, **kw))
    views.draw_views(sample, str(tmp_path / 'views.png'))
    places = [(*corner, w, h) for corner, w, h in drawn]
    for x1, y1, x2, y2 in sample['bboxes'].astype(float):
        assert np.abs(np.array(places) - [x1 - 0.5, y1 - 0.5, x2 - x1, y2 - y1]).max(1).min() < 1e-3
    (ring,), (ys, xs) = rings, np.nonzero(mask)  # its coordinates are those of imshow: 0 is the first pixel's middle
    extent = [xs.min() - 0.5, ys.min() - 0.5, xs.max() + 0.5, ys.max() + 0.5]
    np.testing.assert_allclose([*ring.min(0), *ring.max(0)], extent, atol=0.3)


@pytest.mark.parametrize('ring', [[1, 2, 3, 4, 5, 6, 7], ['a', 'b', 1, 2, 3, 4]])
def test_a_polygon_that_is_none_is_not_drawn(ring, synthetic_sample, tmp_path, monkeypatch):
    sample = _objects(synthetic_sample(seed=3))
    sample['masks'] = [[ring]] * len(sample['bboxes'])
    monkeypatch.setattr(views, 'Polygon', lambda *args, **kw: pytest.fail('drawn'))
    views.draw_views(sample, str(tmp_path / 'views.png'))
    assert (tmp_path / 'views.png').exists()


def test_command(synthetic_sample, tmp_path, capsys):
    from odis_mm.cli import main

    (tmp_path / 'photos').mkdir()
    for seed in range(2):
        Image.fromarray(synthetic_sample(seed=seed)['img']).save(tmp_path / 'photos' / f'{seed}.png')
    options = [
        'train_dataloader.dataset.type=ObjectDataset',
        f'train_dataloader.dataset.data_root={tmp_path}/photos',
        'train_dataloader.dataset.ann_file=',
        'train_dataloader.dataset.data_prefix=',
    ]
    main(['inspect', 'gtsa_demo', '--images', '2', '--out', str(tmp_path / 'page'), '--cfg-options', *options])
    assert '0 of ' in capsys.readouterr().out
    names = {path.name for path in (tmp_path / 'page').iterdir()}
    assert names == {'inspection.html', '000_views.png', '000_pairs.png', '001_views.png', '001_pairs.png'}
    for name in ('1_views.png', '001_views.jpg', 'my_001_views.png'):  # others' files
        (tmp_path / 'page' / name).touch()
    main(['inspect', 'dino_demo', '--images', '1', '--out', str(tmp_path / 'page'), '--cfg-options', *options])
    left = {path.name for path in (tmp_path / 'page').iterdir()}
    assert left == {'inspection.html', '000_views.png', '1_views.png', '001_views.jpg', 'my_001_views.png'}
    (tmp_path / 'other').mkdir()
    (tmp_path / 'other' / '001_views.png').touch()  # of a folder without a page
    main(['inspect', 'dino_demo', '--images', '1', '--out', str(tmp_path / 'other'), '--cfg-options', *options])
    assert (tmp_path / 'other' / '001_views.png').exists()
    capsys.readouterr()
    for command, place in (('inspect', 'page'), ('views', 'page.png')):
        with pytest.raises(SystemExit) as stopped:
            main([command, 'mask_rcnn/mask-rcnn_demo', '--out', str(tmp_path / place)])
        assert stopped.value.code == 2 and 'mask-rcnn_demo makes no views of its images' in capsys.readouterr().err
    for file in tmp_path.glob('photos/?.png'):
        file.write_bytes(b'')
    with pytest.raises(SystemExit):
        main(['views', 'gtsa_demo', '--out', str(tmp_path / 'views.png'), '--cfg-options', *options])
    assert 'none of the images of gtsa_demo that were looked at can be read' in capsys.readouterr().err


def test_all_data_sets_of_a_config_are_shown(demo, tmp_path, capsys):
    from odis_mm.cli import main

    cfg = load_config('odis_demo', {'train_dataloader.dataset.data_root': demo})
    one = cfg.train_dataloader.dataset
    plain = {**copy.deepcopy(one), 'ann_file': '', 'data_prefix': 'val2017'}
    cfg.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[one, plain])
    cfg.dump(tmp_path / 'both.py')
    main(['inspect', str(tmp_path / 'both.py'), '--images', '2', '--out', str(tmp_path / 'page')])
    assert len(list((tmp_path / 'page').glob('*_views.png'))) == 4
    main(['views', str(tmp_path / 'both.py'), '--out', str(tmp_path / 'v.png')])
    assert sorted(path.name for path in tmp_path.glob('*.png')) == ['v_1.png', 'v_2.png']
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(['views', str(tmp_path / 'both.py'), '--out', f'{demo}/val2017/v.png'])
    assert f'would lie in {demo}/val2017, and' in capsys.readouterr().err


def test_pictures_do_not_become_images(synthetic_sample, tmp_path, monkeypatch, capsys):
    from odis_mm.cli import main

    monkeypatch.chdir(tmp_path)
    for seed in range(2):
        Image.fromarray(synthetic_sample(seed=seed)['img']).save(f'{seed}.png')
    cfg, _ = pretraining_config('.', method='gtsa', size=32)
    cfg.dump('own.py')
    main(['inspect', 'own.py', '--images', '1'])
    main(['views', 'own.py'])
    assert len(walk_images('.')[0]) == 2 and len(walk_images('work_dirs')[0]) == 3
    for command in ('inspect', 'views'):
        capsys.readouterr()
        with pytest.raises(SystemExit):
            main([command, 'own.py', '--out', 'new.png'])
        assert f'--out new.png would lie in {tmp_path}' in capsys.readouterr().err
    main(['views', 'own.py', '--images', '2'])
    assert 'earlier' not in capsys.readouterr().out
    Path('work_dirs/views_3.png').touch()
    main(['views', 'own.py', '--images', '2'])
    assert 'there before, of an earlier call: work_dirs/views_3.png\n' in capsys.readouterr().out
