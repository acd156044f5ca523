"""What a process runs on."""

import os

from odis_mm.analysis import benchmark
from odis_mm.utils.environment import cores


def test_cores_are_those_that_this_process_may_use(monkeypatch):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda process: {0, 3}, raising=False)
    monkeypatch.setattr(os, 'cpu_count', lambda: 64)
    assert cores() == benchmark.cores() == 2
