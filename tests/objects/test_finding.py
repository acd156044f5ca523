"""The search through a folder: whole after any interruption, the same bit for bit, with nothing lost."""

import json
import multiprocessing
import os
import signal
import time
from dataclasses import dataclass
from typing import ClassVar, List, Sequence

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from odis_mm.datasets import ObjectDataset
from odis_mm.objects import Found, finding
from odis_mm.objects.finding import find_objects
from odis_mm.utils.errors import BadImageError, FileWriteError, FolderInUseError, StageError


@dataclass
class Bright:
    """A source for tests: the bounding box of what is brighter than ``level``, with a mask."""

    level: int = 128
    wait: float = 0.0
    name = 'bright'
    on_gpu = False
    reading: ClassVar[dict] = {}

    def __call__(self, images: Sequence[np.ndarray]) -> List[Found]:
        found = []
        for image in images:
            time.sleep(self.wait)
            mask = image[..., 0] > self.level
            ys, xs = np.nonzero(mask)
            boxes = np.array([[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]] if len(xs) else [], float).reshape(
                -1, 4
            )
            rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
            rle['counts'] = rle['counts'].decode()
            found.append(Found(boxes, np.full(len(boxes), mask.mean()), [rle] * len(boxes)))
        return found


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(finding, 'CHUNK', 4)
    rng = np.random.default_rng(0)
    for i in range(18):
        image = np.zeros((30, 40, 3), np.uint8)
        if i != 5:
            x, y = rng.integers(0, 20, 2)
            image[y : y + 8, x : x + 9] = 255
        (tmp_path / 'images' / 'ab'[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / 'images' / 'ab'[i % 2] / f'{i:02d}.png')
    return tmp_path


def _find(folder, out='objects.json', source=None, **options):
    lines = []
    info = find_objects(
        folder / 'images',
        folder / out,
        source or Bright(),
        workers=options.pop('workers', 0),
        say=lines.append,
        **options,
    )
    return info, (folder / out).read_bytes(), lines


def test_result_is_what_pretraining_reads(folder):
    info, data, _ = _find(folder)
    content = json.loads(data)
    assert content['info'] == info and info['source'] == 'bright' and info['settings'] == dict(level=128, wait=0.0)
    assert info['images'] == 18 and info['objects'] == 17 and info['bad_images'] == []
    dataset = ObjectDataset('', folder / 'objects.json', folder / 'images', pipeline=[dict(type='LoadObjectImage')])
    assert len(dataset) == 18
    for item in dataset:
        ys, xs = np.nonzero(item['img'][..., 0] > 128)
        expected = [[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]] if len(xs) else np.zeros((0, 4))
        np.testing.assert_array_equal(item['bboxes'], expected)
        assert all(coco_mask.area(mask) == 72 for mask in item['masks'])
        np.testing.assert_allclose(item['scores'], [72 / 1200] * len(item['bboxes']), atol=1e-5)
    assert not (folder / 'objects.json.parts').exists()


def test_processes_do_not_matter(folder):
    assert _find(folder)[1] == _find(folder, 'other.json', workers=2)[1]


def test_few_large_images_are_in_memory_at_once(folder, monkeypatch):
    expected = json.loads(_find(folder, 'expected.json')[1])
    monkeypatch.setattr(finding, 'PIXELS', 2 * 30 * 40)
    held, search = [], Bright.__call__
    monkeypatch.setattr(Bright, '__call__', lambda self, images: held.append(len(images)) or search(self, images))
    assert json.loads(_find(folder)[1]) == expected and sum(held) == 18 and max(held) == 2


def test_images_that_changed_while_it_was_interrupted_are_searched_anew(folder, monkeypatch):
    search, calls = Bright.__call__, []

    def interrupted(self, images):
        calls.append(len(images))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return search(self, images)

    monkeypatch.setattr(Bright, '__call__', interrupted)
    with pytest.raises(KeyboardInterrupt):
        _find(folder)
    Image.fromarray(np.full((30, 40, 3), 255, np.uint8)).save(folder / 'images' / 'a' / '00.png')
    data, searched = _find(folder)[1], calls[3:]
    assert data == _find(folder, 'anew.json')[1]
    assert sum(searched) == 18 - 4, 'parts of images that are as they were are kept'


def test_done_before_and_other_settings(folder):
    _, data, _ = _find(folder)
    _, again, lines = _find(folder, source=Bright())
    assert again == data and 'done before' in lines[0]
    with pytest.raises(FolderInUseError, match='was not made by this command with these settings: name another --out'):
        _find(folder, source=Bright(level=100))
    (folder / 'mine.json').write_text('{"precious": 1}')
    with pytest.raises(FolderInUseError):
        _find(folder, 'mine.json')
    assert (folder / 'mine.json').read_text() == '{"precious": 1}'


def test_images_that_changed_since_are_not_those_that_were_searched(folder):
    _find(folder)
    image = sorted(folder.rglob('*.png'))[3]
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)).save(image)
    with pytest.raises(
        FolderInUseError, match='have changed since .*objects.json was made of them: remove it, or name'
    ):
        _find(folder)


def test_full_disk_loses_nothing(folder, monkeypatch):
    expected = _find(folder, 'expected.json')[1]
    write, room = finding.atomic_write_text, [3]  # settings and two parts

    def full(path, text):
        if not room[0]:
            raise FileWriteError(f'could not save {path}: the disk is full.')
        room[0] -= 1
        write(path, text)

    monkeypatch.setattr(finding, 'atomic_write_text', full)
    with pytest.raises(FileWriteError):
        _find(folder)
    assert not (folder / 'objects.json').exists()
    monkeypatch.setattr(finding, 'atomic_write_text', write)
    searched = []
    monkeypatch.setattr(
        finding,
        'find_chunk',
        lambda root, names, source, real=finding.find_chunk: searched.append(names) or real(root, names, source),
    )
    _, data, lines = _find(folder)
    assert data == expected and len(searched) == 3 and lines[0] == '8 of 18 images were done before'


def test_bad_images_are_counted_named_and_tried_again(folder):
    expected = _find(folder, 'expected.json')[1]
    path = folder / 'images/a/04.png'
    good = path.read_bytes()
    other = next(p for p in sorted(folder.glob('images/*/*.png')) if p != path)
    other_good = other.read_bytes()
    for damaged in (path, other):
        damaged.write_bytes(good[:40])
    with pytest.raises(
        BadImageError, match=r'2 of 18 images are bad, above --max-bad-share 0.01 .*a/04.png.*keeps what was found'
    ):
        _find(folder)
    other.write_bytes(other_good)
    with pytest.raises(BadImageError, match='1 of 18 images are bad, above --max-bad-share 0 '):
        _find(folder, 'none.json', max_bad_share=0)
    info, data, _ = _find(folder, 'without.json')  # one is no reason to stop
    assert [name for name, _ in info['bad_images']] == ['a/04.png'] and str(folder) not in json.dumps(info)
    assert len(json.loads(data)['images']) == 17
    path.write_bytes(good)
    assert _find(folder)[1] == expected


def test_a_damaged_part_is_made_again(folder):
    expected = _find(folder, 'expected.json')[1]
    with pytest.raises(ZeroDivisionError):
        find_objects(folder / 'images', folder / 'objects.json', Bright(), workers=0, say=_fail)
    part = folder / 'objects.json.parts' / '000000.json'
    part.write_text(part.read_text()[:-30])
    assert _find(folder)[1] == expected


def _fail(line):
    """A ``say`` that is called at the end of the search, and ends it before the result is written."""
    raise ZeroDivisionError


def test_a_killed_process_is_told(folder):
    with pytest.raises(StageError, match='fewer --workers; what was found is kept'):
        _find(folder, source=Suicide(), workers=2)


@dataclass
class Suicide(Bright):
    def __call__(self, images):
        os.kill(os.getpid(), signal.SIGKILL)


def test_killed_at_any_instant(folder):
    """SIGKILL at random moments, until one run gets through: the same bytes as those of an undisturbed run."""
    parts, kills, rng = folder / 'objects.json.parts', 0, np.random.default_rng(0)
    fork = multiprocessing.get_context('fork')
    while True:
        process = fork.Process(target=_find, args=(folder,), kwargs=dict(source=Bright(wait=0.02), workers=2))
        before = len(list(parts.glob('0*.json')))
        process.start()
        while process.is_alive() and len(list(parts.glob('0*.json'))) < before + 1:
            time.sleep(0.002)
        process.join(float(rng.random()) * 0.05)
        if not process.is_alive():
            break
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += 1
        assert kills < 20
    assert process.exitcode == 0 and kills >= 2
    assert (folder / 'objects.json').read_bytes() == _find(folder, 'expected.json', source=Bright(wait=0.02))[1]
