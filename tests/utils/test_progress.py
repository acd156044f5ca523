"""Lines of progress: none for what is quick, then with the right numbers."""

import time

from PIL import Image

from odis_mm.datasets.statistics import statistics
from odis_mm.utils import progress
from odis_mm.utils.progress import reported


def test_quick_work_is_silent(capsys):
    assert list(reported([1, 2, 3], 3)) == [1, 2, 3]
    assert capsys.readouterr() == ('', '')


def test_slow_work_tells_what_is_done_and_left(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(time, 'monotonic', lambda: now[0])
    for _ in reported(range(4), 30, each=8):
        now[0] += 4.0
    said = capsys.readouterr()
    assert said.out == '' and said.err.splitlines() == ['16/30 images, 2/s, 7 s left'], 'not before 5 s, not at the end'


def test_statistics_report_both_passes(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(progress, 'PATIENCE', -1.0)
    paths = [str(tmp_path / f'{i}.png') for i in range(2)]
    for path in paths:
        Image.new('RGB', (8, 8)).save(path)
    assert statistics(paths).images == 2
    said = capsys.readouterr().err.splitlines()
    assert [line.split(', ')[:-2] for line in said] == [['1/2 images', 'their range'], ['1/2 images']]


def test_the_frozen_measures_report(monkeypatch, capsys):
    from odis_mm.evaluation.frozen import batches

    monkeypatch.setattr(progress, 'PATIENCE', -1.0)
    assert [batch['x'] for batch in batches([dict(x=i) for i in range(5)], 2)] == [[0, 1], [2, 3], [4]]
    assert [line.split(',')[0] for line in capsys.readouterr().err.splitlines()] == ['2/5 images', '4/5 images']
