"""Schedules."""

import pytest

import odis_mm  # noqa: F401
from odis_mm.utils.schedules import cosine, linear


def test_schedules():
    assert cosine(0.996, 1.0, 0, 10) == pytest.approx(0.996) and cosine(0.996, 1.0, 10, 10) == 1.0
    assert cosine(0.0, 1.0, 5, 10) == pytest.approx(0.5)
    assert (
        linear(0.04, 0.07, 15, 30) == pytest.approx(0.055)
        and linear(0.04, 0.07, 99, 30) == 0.07
        and linear(0.1, 0.1, 0, 0) == 0.1
    )
