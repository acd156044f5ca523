"""What a process runs on."""

import os

import pytest

from odis_mm.analysis import benchmark
from odis_mm.cli.common import device_or_best
from odis_mm.utils.environment import cores
from odis_mm.utils.errors import ConfigError


def test_cores_are_those_that_this_process_may_use(monkeypatch):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda process: {0, 3}, raising=False)
    monkeypatch.setattr(os, 'cpu_count', lambda: 64)
    assert cores() == benchmark.cores() == 2


@pytest.mark.parametrize('name', ['gpu', 'cuda:99', '0'])
def test_a_device_that_is_not_here_is_refused(name):
    with pytest.raises(ConfigError, match=f"there is no device '{name}' here: take one of cpu"):
        device_or_best(name)
    assert device_or_best('cpu') == 'cpu'
