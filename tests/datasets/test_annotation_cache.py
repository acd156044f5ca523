"""The cache of annotations: the same data set, one file for all, and nothing believed that is stale or damaged."""

import gc
import json
import os
import pickle
import sys

import cv2
import numpy as np
import pytest
from torch.utils.data import DataLoader

from odis_mm.datasets import ObjectDataset, annotations
from odis_mm.datasets.columns import Columns, Masks

POLYGON = [[10.25, 5.5, 20.01, 5, 20, 15.99, 10, 15]]
RLE = dict(size=[48, 64], counts='0001')


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A small json, cached as if it were a large one."""
    monkeypatch.setenv('ODIS_MM_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr(annotations, 'CACHE_FROM', 1)
    cv2.imwrite(str(tmp_path / 'a.png'), np.zeros((48, 64, 3), np.uint8))
    write(tmp_path)
    return tmp_path


def write(folder, x=4.0):
    content = dict(
        images=[dict(id=i, file_name='a.png', height=48, width=64) for i in (3, 1, 2)],
        annotations=[
            dict(image_id=1, category_id=5, bbox=[x, 5, 20, 10], segmentation=POLYGON),
            dict(image_id=3, category_id=7, bbox=[1, 2, 3, 4], segmentation=RLE),
            dict(image_id=1, category_id=7, bbox=[30, 5, 20, 10]),
            dict(
                image_id=1, category_id=7, bbox=[30, 5, 20, 10], iscrowd=1, segmentation=[[0.123456789, 1, 2, 3, 4, 5]]
            ),
        ],
        categories=[dict(id=7, name='seven'), dict(id=5, name='fünf')],
    )
    (folder / 'ann.json').write_text(json.dumps(content))


def read(folder, **kwargs):
    return ObjectDataset(folder, 'ann.json', **kwargs)


def items(dataset) -> list:
    return [
        {
            key: value.tolist() if isinstance(value, np.ndarray) else value
            for key, value in info.items()
            if key != 'masks'
        }
        | dict(masks=None if info['masks'] is None else list(info['masks']))
        for info in map(dataset.get_data_info, range(len(dataset)))
    ]


def parses(monkeypatch) -> list:
    calls, real = [], annotations.parse_annotations
    monkeypatch.setattr(
        annotations, 'parse_annotations', lambda *args, **kwargs: (calls.append(args), real(*args, **kwargs))[1]
    )
    return calls


@pytest.mark.parametrize('options', [{}, dict(with_masks=False), dict(with_crowd=True), dict(keep_empty=False)])
def test_what_comes_from_the_cache_is_what_was_read(folder, monkeypatch, options):
    monkeypatch.setenv('ODIS_MM_CACHE', '')
    fresh = read(folder, **options)
    monkeypatch.setenv('ODIS_MM_CACHE', str(folder / 'cache'))
    first, calls = read(folder, **options), parses(monkeypatch)
    second = read(folder, **options)
    assert not calls and items(fresh) == items(first) == items(second)
    assert fresh.counts == second.counts and fresh.metainfo == second.metainfo == {'classes': ('fünf', 'seven')}
    assert isinstance(second.columns.boxes.base, np.ndarray) and not second.columns.boxes.flags.writeable, 'mapped'
    if options.get('with_masks', True):
        assert second.get_data_info(1)['masks'][0] == POLYGON and second.get_data_info(0)['masks'] == [RLE]
        assert second.get_data_info(1)['masks'][1] == [[30, 5, 50, 5, 50, 15, 30, 15]], (
            'the box, where there is no mask'
        )
    if options.get('with_crowd'):
        assert second.get_data_info(1)['masks'][2] == [[0.123456789, 1, 2, 3, 4, 5]]
    second.get_data_info(1)['bboxes'][:] = 0  # a copy


def test_another_content_is_read_anew_whatever_its_time(folder, monkeypatch):
    read(folder)
    told = os.stat(folder / 'ann.json')
    write(folder, x=6.0)
    os.utime(folder / 'ann.json', ns=(told.st_atime_ns, told.st_mtime_ns))
    assert os.stat(folder / 'ann.json').st_size == told.st_size
    assert read(folder).get_data_info(1)['bboxes'][0, 0] == 6
    assert read(folder, min_score=0.5).get_data_info(1)['bboxes'][0, 0] == 6, 'other options have a cache of their own'


def test_a_damaged_cache_is_written_anew(folder, monkeypatch):
    right = items(read(folder))
    (cache,) = (folder / 'cache').glob('*.columns')
    whole, rng = cache.read_bytes(), np.random.default_rng(0)
    calls = parses(monkeypatch)
    for number in range(60):
        data = bytearray(whole)
        if number % 3 == 0:
            data = data[: rng.integers(len(data))]
        elif number % 3 == 1:
            data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        else:
            start = rng.integers(len(data))
            data[start : start + 64] = bytes(min(64, len(data) - start))
        cache.write_bytes(data)
        assert items(read(folder)) == right
        assert cache.read_bytes() == whole or not calls
        calls.clear()
        cache.write_bytes(whole)


def test_no_cache_is_no_fault(folder, monkeypatch):
    right = items(read(folder))
    for place in (folder / 'a.png', folder / 'a.png/below', ''):
        monkeypatch.setenv('ODIS_MM_CACHE', str(place))
        assert items(read(folder)) == right


def test_small_files_leave_nothing_behind(folder, monkeypatch):
    monkeypatch.setattr(annotations, 'CACHE_FROM', 1 << 20)
    read(folder)
    assert not (folder / 'cache').exists()


def test_collection_goes_on_afterwards(folder):
    read(folder)
    assert gc.isenabled()
    (folder / 'ann.json').write_text('{')
    with pytest.raises(ValueError, match='not valid JSON'):
        read(folder)
    assert gc.isenabled()


def _info(info):
    return info['bboxes'].tolist(), None if info['masks'] is None else list(info['masks'])


@pytest.mark.parametrize('context', ['fork', 'spawn'])
def test_workers_have_it_too(folder, context, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['odis-mm'])  # a worker that is not forked imports what a command's does
    dataset = read(folder, pipeline=[_info])
    loader = DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context=context, collate_fn=tuple)
    assert list(loader) == [_info(dataset.get_data_info(i)) for i in range(3)]
    again = pickle.loads(pickle.dumps(dataset))
    assert items(again) == items(dataset)
    assert len(pickle.dumps(dataset)) < 20_000, 'a worker that is not forked maps the cache itself'


def test_parts(folder):
    dataset = read(folder)
    part = dataset.get_subset([2, 0])
    assert [info['img_id'] for info in map(part.get_data_info, range(2))] == [2, 3] and len(dataset) == 3
    assert len(read(folder, indices=2)) == 2 and dataset.get_subset(-1).get_data_info(0)['img_id'] == 2


def test_masks_come_back_bit_for_bit():
    rng = np.random.default_rng(0)
    for decimals in (2, 17):
        given = [
            [rng.uniform(0, 640, 8).round(decimals).tolist() for _ in range(rng.integers(1, 4))] for _ in range(50)
        ]
        given += [
            None,
            [],
            [[1, 2]],
            [['1', 2, 3, 4, 5, 6]],
            dict(size=[2, 2], counts=[4]),
            [[1, 2, 3, 4, 5, 6], [7, 8]],
        ]
        masks, bare = Masks.of(given)
        assert bare == 3 and masks.points.dtype == (np.int32 if decimals == 2 else np.float64)
        expected = [*given[:50], None, None, None, given[53], given[54], [[1, 2, 3, 4, 5, 6]]]
        assert [masks.get(i) for i in range(len(given))] == expected


def test_names_of_any_kind():
    names = ['a', '', 'ü/ö.png', os.fsdecode(b'\xff.png'), '\ud800']
    assert list(Columns.without_objects(names).names) == names
