"""Bad images: replaced, told once, and too many of them end the run; the checker of data sets."""

import json
import logging
import re

import cv2
import numpy as np
import pytest
from torch.utils.data import DataLoader

from odis_mm.cli.verify import verify_main as verify
from odis_mm.datasets import BadImageError, Draw, ObjectDataset, image_io
from odis_mm.engine.hooks import BadImageHook

LOAD = [dict(type='LoadObjectImage')]


@pytest.fixture
def folder(tmp_path):
    """Twenty images, each of one grey level; 3 and 11 are no images."""
    (tmp_path / 'img').mkdir()
    for i in range(20):
        cv2.imwrite(str(tmp_path / f'img/{i:02}.png'), np.full((24, 32, 3), 10 * i, np.uint8))
    (tmp_path / 'img/03.png').write_bytes(b'<html>gone</html>')
    (tmp_path / 'img/11.png').write_bytes(b'')
    return tmp_path


def dataset(folder, share=0.1, **kwargs):
    return ObjectDataset(folder / 'img', pipeline=LOAD, max_bad_share=share, **kwargs)


def level(item) -> int:
    return int(item['img'].max())


def test_another_image_takes_the_place_deterministically(folder):
    first, again = dataset(folder), dataset(folder)
    levels = [[level(first[Draw(i, epoch)]) for i in range(20)] for epoch in range(4)]
    assert levels == [[level(again[Draw(i, epoch)]) for i in range(20)] for epoch in range(4)]
    for epoch in levels:
        assert all(epoch[i] == 10 * i for i in range(20) if i not in (3, 11)), 'the others are untouched'
    assert len({epoch[3] for epoch in levels}) > 1, 'not the same one for ever'
    assert first.bad_images() == [str(folder / 'img/03.png'), str(folder / 'img/11.png')]


def test_workers_share_what_they_found(folder):
    data = dataset(folder)
    loader = DataLoader(data, batch_size=5, num_workers=2, collate_fn=lambda items: [level(item) for item in items])
    assert sum(loader, []) == [level(data[Draw(i, 0)]) for i in range(20)]
    data.bad.zero_()
    list(loader)
    assert len(data.bad_images()) == 2


def test_too_many_end_the_run_with_the_list(folder):
    data = dataset(folder, share=0.05)
    with pytest.raises(
        BadImageError, match=r'2 of 20 images are bad, above max_bad_share=0.05: .*03.png, .*11.png; .*odis-mm verify'
    ):
        list(data)
    for path in (folder / 'img').glob('*'):
        path.write_bytes(b'')
    with pytest.raises(BadImageError, match='11 images in a row are bad'):
        dataset(folder, share=0.99)[0]


@pytest.mark.parametrize(
    'bad, total, stops', [(1, 20, False), (2, 20, True), (1, 3, False), (1, 2, True), (1, 1, True)]
)
def test_one_bad_image_among_three_or_more_is_no_reason_to_stop(tmp_path, bad, total, stops):
    (tmp_path / 'img').mkdir()
    for i in range(total):
        cv2.imwrite(str(tmp_path / f'img/{i:02}.png'), np.full((24, 32, 3), 9 * i, np.uint8))
    for i in range(bad):
        (tmp_path / f'img/{i:02}.png').write_bytes(b'')
    data = dataset(tmp_path, share=0.01)
    if stops:
        with pytest.raises(BadImageError, match=f'{bad} of {total} images are bad'):
            list(data)
    else:
        assert len([level(item) for item in data]) == total and len(data.bad_images()) == bad


def test_none_is_allowed_by_default(folder):
    with pytest.raises(BadImageError, match='03.png cannot be decoded'):
        ObjectDataset(folder / 'img', pipeline=LOAD)[3]
    with pytest.raises(ValueError, match='max_bad_share'):
        dataset(folder, share=1.0)


class Runner:
    """As much of one as the hook reads."""

    world_size, iter = 1, 0

    def __init__(self, data):
        self.train_dataloader = DataLoader(data, batch_size=20)
        self.lines = []
        self.logger = logging.Logger('test')
        self.logger.addHandler(
            type('Ears', (logging.Handler,), dict(emit=lambda _, record: self.lines.append(record.getMessage())))()
        )


def test_the_log_names_each_once(folder):
    data = dataset(folder)
    list(data)
    runner, hook = Runner(data), BadImageHook(interval=1)
    for _ in range(3):
        hook.after_train_iter(runner, 0)
    assert len(runner.lines) == 2
    assert re.match(
        r'bad image replaced by another one \(1 of 20 so far\): image .*03.png cannot be decoded', runner.lines[0]
    )
    assert 'is empty' in runner.lines[1]
    short = Runner(data)
    BadImageHook().after_train(short)  # ended before the first look
    assert short.lines == runner.lines
    data.bad.fill_(1)  # what other ranks found
    with pytest.raises(BadImageError, match='20 of 20'):
        hook.look(runner)


def coco(folder):
    """Four images, of which one is broken, and five objects, of which two are of no use."""
    box = [4.0, 4.0, 10.0, 8.0]
    square = [[4.0, 4.0, 14.0, 4.0, 14.0, 12.0, 4.0, 12.0]]
    content = dict(
        info='kept',
        categories=[dict(id=1, name='thing')],
        images=[dict(id=i, file_name=f'{i:02}.png', height=24, width=32) for i in (1, 2, 3, 4)],
        annotations=[
            dict(id=1, image_id=1, category_id=1, bbox=box, segmentation=square),
            dict(id=2, image_id=1, category_id=1, bbox=[4, 4, 0, 5], segmentation=square),
            dict(id=3, image_id=2, category_id=1, bbox=box, segmentation=dict(size=[5, 5], counts=[25])),
            dict(id=4, image_id=3, category_id=1, bbox=box, segmentation=square),
            dict(id=5, image_id=4, category_id=1, bbox=box),
        ],
    )
    (folder / 'ann.json').write_text(json.dumps(content))
    return folder / 'ann.json'


@pytest.mark.parametrize('workers', ['0', '2'])
def test_verify_reports_and_cleans(folder, workers, capsys):
    coco(folder)
    with pytest.raises(SystemExit) as stop:
        verify(
            [
                '--data',
                str(folder),
                '--ann-file',
                'ann.json',
                '--images',
                'img',
                '--workers',
                workers,
                '--report',
                str(folder / 'report.json'),
                '--clean',
                str(folder / 'clean.json'),
            ]
        )
    assert stop.value.code == 1, 'something was found'
    said = capsys.readouterr().out
    assert '4 images, 1 bad' in said and '5 objects, 2 bad' in said
    report = json.loads((folder / 'report.json').read_text())
    assert [entry['image'] for entry in report['bad_images']] == [str(folder / 'img/03.png')]
    assert {entry['annotation']: entry['why'] for entry in report['bad_objects']} == {
        1: 'the box [4, 4, 0, 5] has no pixel inside the image',
        2: 'an RLE mask of size [5, 5] does not fit an image of height 24 and '
        'width 32; use the images that the masks were made on.',
    }
    clean = json.loads((folder / 'clean.json').read_text())
    assert clean['info'] == 'kept' and [image['id'] for image in clean['images']] == [1, 2, 4]
    assert [annotation['id'] for annotation in clean['annotations']] == [1, 5]
    verify(['--data', str(folder), '--ann-file', 'clean.json', '--images', 'img', '--workers', workers])
    assert '3 images, 0 bad' in capsys.readouterr().out


def test_verify_a_plain_folder(folder, capsys):
    with pytest.raises(SystemExit):
        verify(['--data', str(folder), '--images', 'img', '--workers', '0', '--clean', str(folder / 'list.txt')])
    assert '20 images, 2 bad' in capsys.readouterr().out
    assert len(ObjectDataset(folder, 'list.txt', 'img')) == 18


def test_verify_says_what_is_missing(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        verify(['--data', str(tmp_path), '--ann-file', 'gone.json'])
    assert stop.value.code == 2 and 'gone.json does not exist' in capsys.readouterr().err


def test_all_kinds_of_bad_images_are_one(tmp_path):
    with pytest.raises(image_io.BadImageError) as missing:
        image_io.read_image(tmp_path / 'x.jpg')
    assert isinstance(missing.value, FileNotFoundError) and isinstance(missing.value, ValueError)
    with pytest.raises(image_io.BadImageError) as refused:
        image_io.read_image(tmp_path)
    assert isinstance(refused.value, OSError)
