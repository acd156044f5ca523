"""A few hundred mutated files through the readers; robustness/fuzz.py takes as many as one likes. And what it found."""

import json
import os
import signal
import time

import cv2
import numpy as np
import pytest

from odis_mm.datasets import read_image, segmentation_to_mask
from odis_mm.utils.errors import AnnotationError, BadImageError
from robustness import fuzz


@pytest.mark.parametrize('name, count', [('annotations', 120), ('images', 300)])
def test_mutated_files_are_read_or_refused(tmp_path, name, count):
    seeds = fuzz.annotation_seeds(tmp_path) if name == 'annotations' else fuzz.image_seeds()
    # OpenCV's threads are there when the cases' process is forked
    cv2.GaussianBlur(np.zeros((2000, 2000, 3), np.uint8), (9, 9), 2)
    counts, findings = fuzz.fuzz(fuzz.TASKS[name], seeds, count, 1, tmp_path, batch=count)
    assert not findings, findings
    assert (
        sum(counts.values()) == count
        and counts['read'] > count / 10
        and sum(counts.values()) - counts['read'] > count / 4
    )


def test_seeds_are_right(tmp_path):
    for i, seed in enumerate(fuzz.annotation_seeds(tmp_path)):
        (tmp_path / 'seed.json').write_bytes(seed)
        assert fuzz.judge(fuzz.TASKS['annotations'], tmp_path / 'seed.json') == ('read', ''), i
    for i, seed in enumerate(fuzz.image_seeds()):
        (tmp_path / 'seed.jpg').write_bytes(seed)
        assert fuzz.judge(fuzz.TASKS['images'], tmp_path / 'seed.jpg') == ('read', ''), i


def test_an_id_beyond_64_bits_is_read(tmp_path):
    content = json.loads(fuzz.annotation_seeds(tmp_path)[0])
    content['images'][0]['id'] = 2**70
    (tmp_path / 'seed.json').write_text(json.dumps(content))
    assert fuzz.judge(fuzz.TASKS['annotations'], tmp_path / 'seed.json') == ('read', '')


@pytest.mark.parametrize('name', ['a\0.jpg', '\ud800.jpg'])
def test_a_name_that_no_file_can_have_is_refused(tmp_path, name):
    with pytest.raises(BadImageError, match='cannot have such a name'):
        read_image(tmp_path / name)


def reader(faults: dict):
    def read(path):
        number = int(path.read_bytes())
        if number in faults:
            faults[number](path)

    return fuzz.Task('toy', lambda seeds, case, seed: str(case).encode(), read, 'toy.txt')


def test_the_fuzzer_sees_what_it_looks_for(tmp_path, monkeypatch):
    """Crash, foreign error, nameless error, too much memory, and a hang in Python, each with its case; and goes on."""
    monkeypatch.setattr(fuzz, 'SECONDS', 0.3)

    def of(error):
        def fail(path):
            raise error(path)

        return fail

    def hang(path):
        while True:
            time.sleep(0) if time.process_time() < 0 else None

    faults = {
        1: lambda path: os.kill(os.getpid(), signal.SIGKILL),
        3: of(lambda path: KeyError('id')),
        4: of(lambda path: AnnotationError('it is bad')),
        5: of(lambda path: AnnotationError(f'{path} is bad')),
        6: lambda path: np.ones(3 << 30, np.uint8),
        8: hang,
        9: of(lambda path: BadImageError(f'{path}\nis bad')),
    }
    counts, findings = fuzz.fuzz(reader(faults), [], 11, 0, tmp_path)
    assert [finding.case for finding in findings] == [1, 3, 4, 6, 8, 9]
    assert 'exit code -9' in findings[0].what and 'KeyError' in findings[1].what and 'MemoryError' in findings[3].what
    assert 'took more than' in findings[4].what
    assert counts == {'read': 4, 'refused, AnnotationError': 1, 'wrong': 6}


@pytest.mark.parametrize('side', [11000, 30000, 65500])
def test_a_header_that_claims_too_much_takes_no_memory(tmp_path, side):
    data = bytearray(cv2.imencode('.jpg', np.zeros((48, 64, 3), np.uint8))[1].tobytes())
    at = data.find(b'\xff\xc0') + 5
    data[at : at + 4] = side.to_bytes(2, 'big') * 2
    (tmp_path / 'a.jpg').write_bytes(data)
    with pytest.raises(
        BadImageError,
        match=r'a.jpg (has more than 134217728 pixels by its header|claims 121000000 pixels in \d+ bytes)',
    ):
        read_image(tmp_path / 'a.jpg')


def test_a_blank_image_is_not_taken_for_a_damaged_one(tmp_path):
    for options in ([], [cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_OPTIMIZE, 1, cv2.IMWRITE_JPEG_QUALITY, 1]):
        cv2.imwrite(str(tmp_path / 'a.jpg'), np.full((4000, 4000), 255, np.uint8), options)
        assert read_image(tmp_path / 'a.jpg').shape == (4000, 4000, 3)


@pytest.mark.parametrize(
    'segmentation',
    [
        dict(size=[4, 6], counts=[10, -4, 18]),
        dict(size=[4, 6], counts=[10, 4]),
        dict(size=[4, 6], counts=[1e300, 3]),
        dict(size=[4, 6], counts=7),
        dict(size=[4, 6], counts='PPPPPPPPoooo'),
        dict(size='46', counts=[24]),
        dict(size=[4, 6], counts='é'),
        dict(counts=[24]),
        [[0, 0, 1e9, 0, 1e9, 1e9]],
        [[float('nan')] * 6],
        [['a'] * 6],
        [[1, 2, 3, 4, 5, 6, 7]],
        [[[1]] * 6],
        [],
        'abc',
        None,
        [[1, 2, 3, 4, 10**400, 6]],
    ],
)
def test_masks_that_are_none_are_refused(segmentation):
    """pycocotools takes them, writes beyond its memory, fills all of it, or never ends."""
    with pytest.raises(AnnotationError, match='mask|polygon'):
        segmentation_to_mask(segmentation, 4, 6)
