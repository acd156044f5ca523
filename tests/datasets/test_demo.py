"""The demo set: exact annotations, classes told by pattern and not by colour, the same bytes however it is made."""

import json
import multiprocessing
import os
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from odis_mm.cli.demo import demo_main
from odis_mm.datasets import DemoObjectDataset, demo

try:
    from odis_mm.detection import DemoDetectionDataset
except ImportError:
    DemoDetectionDataset = None

TINY = dict(num_train=6, num_val=3, size=96, seed=3)


def _files(root) -> dict:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(Path(root).rglob('*')) if path.is_file()}


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    return demo.ensure_demo(tmp_path_factory.mktemp('demo') / 'set', **TINY)


def test_annotations_are_those_of_the_visible_pixels(tiny):
    for split, count in (('train', 6), ('val', 3)):
        coco = COCO(f'{tiny}/annotations/instances_{split}2017.json')
        assert len(coco.imgs) == count and [cat['name'] for cat in coco.cats.values()] == list(demo.CLASSES)
        for index, info in enumerate(coco.imgs.values()):
            image, labels, masks = demo.render(split, index, TINY['size'], TINY['seed'])
            stored = cv2.imread(f'{tiny}/{split}2017/{info["file_name"]}')[..., ::-1]
            assert stored.shape[:2] == (info['height'], info['width']) == (96, 96)
            assert np.abs(stored.astype(int) - image).mean() < 6  # JPEG, colour at half resolution
            anns = coco.imgToAnns[info['id']]
            assert 3 <= len(anns) == len(labels) <= 6
            assert masks.sum(0).max() == 1  # a pixel belongs to the topmost object alone
            for ann, label, mask in zip(anns, labels, masks):
                np.testing.assert_array_equal(coco.annToMask(ann), mask)
                ys, xs = np.nonzero(mask)
                box = [xs.min(), ys.min(), xs.max() + 1 - xs.min(), ys.max() + 1 - ys.min()]
                assert ann['bbox'] == box and ann['area'] == mask.sum() and ann['category_id'] == label + 1


def test_scales_and_occlusion():
    widths, overlaps = [], 0
    for index in range(40):
        _, _, masks = demo.render('train', index)
        rles = coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))
        boxes = coco_mask.toBbox(rles)
        widths += boxes[:, 2].tolist()
        iou = coco_mask.iou(boxes, boxes, [0] * len(boxes))
        overlaps += (iou[np.triu_indices(len(boxes), 1)] > 0.02).any()
    assert min(widths) < 22 and max(widths) > 56 and max(widths) < 100
    assert overlaps > 15


def test_two_tones_differ_in_luminance():
    tones = np.stack([demo.two_tones(np.random.default_rng(seed)) for seed in range(500)])
    luminance = np.clip(tones, 0, 255) @ [0.299, 0.587, 0.114]
    assert np.abs(luminance[:, 0] - luminance[:, 1]).min() > 60
    assert 0.4 < (luminance[:, 0] > luminance[:, 1]).mean() < 0.6


def _objects(split, count):
    """Mean colour, a descriptor free of contrast (gradient orientations in 4 x 4 cells) and label of each object."""
    colours, patterns, labels = [], [], []
    for index in range(count):
        image, found, masks = demo.render(split, index)
        grey = image.astype(np.float32) @ np.float32([0.299, 0.587, 0.114])
        gy, gx = np.gradient(grey)
        strength, direction = np.hypot(gx, gy), (np.arctan2(gy, gx) % np.pi * (8 / np.pi)).astype(int) % 8
        for label, mask in zip(found, masks):
            ys, xs = np.nonzero(mask)
            window = slice(ys.min(), ys.max() + 1), slice(xs.min(), xs.max() + 1)
            cells = [
                cv2.resize(
                    np.where(direction == k, strength, 0)[window].astype(np.float32),
                    (4, 4),
                    interpolation=cv2.INTER_AREA,
                )
                for k in range(8)
            ]
            patterns.append(np.ravel(cells) / np.linalg.norm(cells))
            colours.append(image[mask].mean(0))
            labels.append(label)
    return np.array(colours), np.array(patterns), np.array(labels)


def test_classes_are_told_by_pattern_not_by_colour():
    train, val = _objects('train', 120), _objects('val', 60)

    def accuracy(kind, k=5):
        distance = ((val[kind][:, None] - train[kind]) ** 2).sum(-1)
        votes = train[2][np.argsort(distance, 1)[:, :k]]
        return (np.array([np.bincount(row).argmax() for row in votes]) == val[2]).mean()

    chance = 1 / len(demo.CLASSES)
    assert accuracy(0) < chance + 0.1, 'the mean colour tells the class'
    assert accuracy(1) > 0.85, 'a simple pattern descriptor does not tell the class'


def test_same_bytes_for_any_process_count_and_prefix(tiny, tmp_path):
    again = demo.ensure_demo(tmp_path / 'two', processes=2, **TINY)
    assert _files(again) == _files(tiny)
    larger = _files(demo.ensure_demo(tmp_path / 'more', **{**TINY, 'num_train': 9}))
    images = {name: data for name, data in _files(tiny).items() if name.endswith('.jpg')}
    assert all(larger[name] == data for name, data in images.items())
    other = _files(demo.ensure_demo(tmp_path / 'seed', **{**TINY, 'seed': 4}))
    assert not any(other[name] == data for name, data in images.items())


def test_other_parameters_have_another_folder(tmp_path, monkeypatch):
    assert demo.demo_root(tmp_path / 'set') == tmp_path / 'set'
    assert demo.demo_root(tmp_path / 'set', seed=1) == tmp_path / 'set_2000_200_128px_seed1'
    monkeypatch.setenv('ODIS_DEMO_ROOT', str(tmp_path / 'env'))
    assert demo.demo_root() == tmp_path / 'env'
    monkeypatch.delenv('ODIS_DEMO_ROOT')
    assert demo.demo_root() == Path('data/odis_demo')


def test_present_set_is_left_alone_and_a_damaged_one_rendered_again(tmp_path):
    root = Path(demo.ensure_demo(tmp_path / 'set', **TINY))
    before, stamp = _files(root), root.stat().st_mtime_ns
    demo.ensure_demo(tmp_path / 'set', **TINY)
    assert root.stat().st_mtime_ns == stamp
    for damage in ('train2017/000000000002.jpg', 'annotations/instances_val2017.json'):
        (root / damage).unlink()
        demo.ensure_demo(tmp_path / 'set', **TINY)
        assert _files(root) == before
    manifest = json.loads((root / demo.MANIFEST).read_text())
    (root / demo.MANIFEST).write_text(json.dumps({**manifest, 'drawing': -1}))  # of an older version of the renderer
    demo.ensure_demo(tmp_path / 'set', **TINY)
    assert _files(root) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([root.name, f'.{root.name}.lock'])


def test_killed_run_leaves_nothing_under_the_name(tmp_path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(demo, 'write_image', fail)
        with pytest.raises(KeyboardInterrupt):
            demo.ensure_demo(tmp_path / 'set', **TINY)
    assert [path.suffix for path in tmp_path.iterdir()] == ['.lock']
    demo.demo_root(tmp_path / 'set', **TINY).with_name('.set_6_3_96px_seed3.tmp999').mkdir()  # what SIGKILL leaves
    demo.ensure_demo(tmp_path / 'set', **TINY)
    assert not list(tmp_path.glob('.*tmp*'))


def _ensure(root):
    return demo.ensure_demo(root, **TINY)


def test_processes_that_start_together(tiny, tmp_path):
    with multiprocessing.get_context('fork').Pool(4) as pool:
        roots = pool.map(_ensure, [tmp_path / 'set'] * 4, chunksize=1)
    assert len(set(roots)) == 1 and _files(roots[0]) == _files(tiny)


def test_foreign_folder_is_never_touched(tmp_path):
    folder = tmp_path / 'set_6_3_96px_seed3'
    (folder / 'train2017').mkdir(parents=True)
    (folder / 'train2017' / 'mine.jpg').write_bytes(b'mine')
    with pytest.raises(FileExistsError) as error:
        demo.ensure_demo(tmp_path / 'set', **TINY)
    assert str(error.value) == (
        f'{folder} exists and is no demo set (it has no readable odis_demo.json): name another folder for the demo set '
        'by --root or ODIS_DEMO_ROOT; for images of your own take a recipe without "demo" in its name.'
    )
    assert (folder / 'train2017' / 'mine.jpg').read_bytes() == b'mine'
    (folder / demo.MANIFEST).write_text(json.dumps(dict(num_train=5)))
    with pytest.raises(FileExistsError, match='holds a demo set of other parameters'):
        demo.ensure_demo(tmp_path / 'set', **TINY)


def test_bad_parameters_and_full_disk(tmp_path, monkeypatch):
    with pytest.raises(ValueError) as error:
        demo.ensure_demo(tmp_path / 'set', num_train=0)
    assert str(error.value) == (
        'the demo set needs num_train >= 1, num_val >= 1, size >= 64 and seed >= 0; got 0, 200, 128, 0.'
    )

    def full(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(demo, 'write_image', full)
    with pytest.raises(OSError) as error:
        demo.ensure_demo(tmp_path / 'set', **TINY)
    assert str(error.value) == (
        f'the demo set could not be written to {tmp_path}/set_6_3_96px_seed3 (No space '
        'left on device); name another folder by --root or ODIS_DEMO_ROOT.'
    )
    assert [path.suffix for path in tmp_path.iterdir()] == ['.lock']


def test_command_line(tmp_path, capsys):
    options = ['--root', str(tmp_path / 'set'), '--num-train', '2', '--num-val', '1']
    demo_main(options)
    said = capsys.readouterr()
    assert said.out.splitlines()[-1] == str(tmp_path / 'set_2_1_128px_seed0')
    assert 'rendering the demo set: 3/3 images' in said.err
    (tmp_path / 'file').write_text('')
    with pytest.raises(SystemExit) as stop:
        demo_main(['--root', str(tmp_path / 'file' / 'set')])
    assert stop.value.code == 2
    assert re.match('error.*could not be written to .*name another folder by --root', capsys.readouterr().err)


def test_rendered_nowhere_but_where_it_was_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, 'render_set', lambda *_: pytest.fail('rendered'))
    monkeypatch.setenv('ODIS_DEMO_ROOT', str(tmp_path / 'demo'))
    (tmp_path / 'photos').mkdir()
    for options in (
        dict(data_root=tmp_path / 'typo', ann_file='annotations/instances_train2017.json', data_prefix='train2017'),
        dict(data_root=tmp_path / 'photos', ann_file='annotations/typo.json'),
    ):
        with pytest.raises(
            FileNotFoundError, match='does not exist.*the demo set itself is rendered to ODIS_DEMO_ROOT'
        ):
            DemoObjectDataset(**options)
        if DemoDetectionDataset is not None:
            with pytest.raises(FileNotFoundError):
                DemoDetectionDataset(data_root=str(options['data_root']), ann_file=options['ann_file'])
    assert sorted(path.name for path in tmp_path.rglob('*')) == ['photos']
    (tmp_path / 'photos' / 'mine.jpg').write_bytes(cv2.imencode('.jpg', np.zeros((9, 9, 3), np.uint8))[1].tobytes())
    assert len(DemoObjectDataset(data_root=tmp_path / 'photos', ann_file='')) == 1, (
        'as gtsa_demo with ann_file= reads it'
    )
    monkeypatch.setenv('ODIS_DEMO_ROOT', str(tmp_path / 'photos'))
    with pytest.raises(FileExistsError, match='is no demo set') as error:
        DemoObjectDataset(data_root=tmp_path / 'photos', ann_file='')
    assert 'remove' not in str(error.value)


def test_rendered_to_its_own_place(tmp_path, monkeypatch):
    root, few = tmp_path / 'demo', dict(drawing=demo.DRAWING, **TINY)
    monkeypatch.setenv('ODIS_DEMO_ROOT', str(root))
    monkeypatch.setattr(demo, 'ensure_demo', lambda folder: demo.replace_set(Path(folder), few, 1))
    options = dict(data_root=str(root), ann_file='annotations/instances_val2017.json', data_prefix='val2017')
    assert len(DemoObjectDataset(**options)) == TINY['num_val'] == len(DemoObjectDataset(**options))
    (root / 'val2017' / 'mine.jpg').write_bytes(b'mine')
    (root / demo.MANIFEST).unlink()
    with pytest.raises(FileExistsError, match='files of other origin .val2017/mine.jpg'):
        DemoObjectDataset(**options)
    assert (root / 'val2017' / 'mine.jpg').read_bytes() == b'mine'
