"""Sentences of the report that follow from its numbers."""

from types import SimpleNamespace

import pytest

from odis_mm.workflows.outcome import flat_baseline


@pytest.mark.parametrize(
    'values, told', [((33.3, 29.9), True), ((30.0, 30.0), True), ((29.9, 33.3), False), ((30.0,), False)]
)
def test_a_baseline_that_uses_no_labels_is_told(values, told):
    def table(images, value):
        row = SimpleNamespace(runs=SimpleNamespace(mean=value))
        return SimpleNamespace(images=images, row={'random weights': row}.__getitem__)

    tables = [table(images, value) for images, value in zip((20, 205), values)]
    plan = SimpleNamespace(detector=SimpleNamespace(iterations=200))
    found = flat_baseline(SimpleNamespace(tables=tables, reference='random weights', plan=plan))
    assert bool(found) == told
    if told:
        assert f'({values[0]:.1f} with 20 images, {values[1]:.1f} with 205)' in found
        assert '--set detector.iterations=600' in found
