"""Sentences of the report that follow from its numbers."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

from odis_mm.workflows.compare import DetectorRun
from odis_mm.workflows.outcome import (
    Outcome,
    Row,
    Table,
    add_lengths,
    add_measures,
    flat_baseline,
    headline,
    longer_training,
    recommendation,
    to_settle,
)
from odis_mm.workflows.plan import Data, Plan, Start, Step
from odis_mm.workflows.stats import Difference, Runs

SOURCES = ('images', 'detector seeds', 'pretraining seeds')


@pytest.mark.parametrize(
    'values, told', [((33.3, 29.9), True), ((30.0, 30.0), True), ((29.9, 33.3), False), ((30.0,), False)]
)
def test_a_baseline_that_uses_no_labels_is_told(values, told):
    def table(images, value):
        row = SimpleNamespace(runs=SimpleNamespace(mean=value))
        return SimpleNamespace(images=images, row={'random weights': row}.__getitem__)

    tables = [table(images, value) for images, value in zip((20, 205), values)]
    plan = SimpleNamespace(detector=SimpleNamespace(iterations=200))
    found = flat_baseline(SimpleNamespace(tables=tables, reference='random weights', plan=plan, longer=None))
    assert bool(found) == told
    if told:
        assert f'({values[0]:.1f} with 20 images, {values[1]:.1f} with 205)' in found
        assert '--set detector.iterations=600' in found


@pytest.mark.parametrize(
    'reached, words',
    [(52.3, 'can be one of training time alone'), (49.0, 'alone'), (40.0, 'more than a shorter training')],
)
def test_a_longer_training_of_the_baseline_tells_what_the_gain_is(reached, words):
    gap = SimpleNamespace(verdict='above')
    rows = [
        SimpleNamespace(start=name, runs=SimpleNamespace(mean=mean), gap=gap)
        for name, mean in (('random weights', 29.9), ('ODIS', 48.7), ('GTSA', 49.0))
    ]
    outcome = SimpleNamespace(
        tables=[SimpleNamespace(images=205, rows=rows)],
        reference='random weights',
        longer=reached,
        plan=SimpleNamespace(detector=SimpleNamespace(iterations=200, longer=4)),
    )
    found = longer_training(outcome)
    start = f'trained 4 times as long (800 iterations, one seed), random weights reaches {reached} with 205 labelled'
    assert found.startswith(start) and 'GTSA has 49.0 after 200.' in found and words in found
    assert not flat_baseline(outcome)
    gap.verdict = 'no difference shown'  # nor is a gain, then, that could be more than something
    assert (words in longer_training(outcome)) == ('alone' in words)
    rows[0].runs.mean = 50.0  # above both at the length of the tables
    assert longer_training(outcome).endswith('GTSA has 49.0 after 200.')
    outcome.longer = None
    assert not longer_training(outcome)


def test_checkpoints_of_a_chain_are_those_of_its_last_step():
    start = SimpleNamespace(name='chain', recipes=['first', 'second'])
    plan = SimpleNamespace(starts=[start], seeds=SimpleNamespace(pretraining=1, detector=1), start=lambda name: start)
    comparison = SimpleNamespace(
        plan=plan,
        pretrainings={('chain', 0): SimpleNamespace(name='p')},
        data=SimpleNamespace(images=dict(val=4)),
        evaluated='val',
    )
    runs = {DetectorRun('chain', 0, 100.0, 0, share): (10.0, np.zeros(2)) for share in (0.5, 1.0)}
    outcome = SimpleNamespace(lengths={})
    add_lengths(outcome, comparison, runs, {'p': dict(iterations=[100, 40])})
    assert [point[1] for point in outcome.lengths['chain']] == [120, 140]


def settle(parts, value=2.0, seeds=2, recipes=('alfm_small',)):
    reach = 1.96 * sum(part for part in parts.values() if part == part) ** 0.5
    row = SimpleNamespace(start='ALFM', gap=Difference(value, value - reach, value + reach, parts, 1e6))
    plan = SimpleNamespace(
        seeds=SimpleNamespace(pretraining=seeds, detector=2), starts=[SimpleNamespace(recipes=recipes)]
    )
    return ' '.join(to_settle(SimpleNamespace(tables=[SimpleNamespace(images=20, rows=[row])], images=100, plan=plan)))


@pytest.mark.parametrize(
    'parts, more',
    [
        ({'images': 1.0, 'detector seeds': 0.9, 'pretraining seeds': 0.9}, SOURCES),
        ({'images': 1.5, 'detector seeds': 0.0, 'pretraining seeds': float('nan')}, SOURCES[:1]),
    ],
)
def test_as_many_more_as_are_told_would_show_the_difference(parts, more):
    words = settle(parts)
    times = float(re.search(r'about ([0-9.]+) times', words)[1])
    left = sum(part / (times if name in words.partition('times')[2] else 1) for name, part in parts.items() if part > 0)
    assert 1.96 * left**0.5 == pytest.approx(2.0, rel=0.02)
    assert all(name in words.partition('times')[2] for name in more)


def test_a_seed_of_pretraining_is_asked_for_only_where_something_is_pretrained():
    parts = {'images': 1.5, 'detector seeds': 0.5, 'pretraining seeds': 0.0}
    assert '--set seeds.pretraining=2' in settle(parts, seeds=1)
    assert 'seed, so the intervals' not in settle(parts, seeds=1, recipes=())


def outcome_of(*gaps, base=20.0):
    """Of random weights and ODIS at one amount of labels for each gap, a multiple of the reach of its interval, 2."""
    plan = Plan(Data(root='x'), (Start('random weights'), Start('ODIS', (Step(recipe='odis_small'),))))
    tables = []
    for k, gap in enumerate(gaps):
        low = base * (1 + k)
        high = low + 2 * gap
        runs = [Runs(np.full((1, 2), ap) + [0, 0.01], np.full((1, 2, 3), ap), 9) for ap in (low, high)]
        found = Difference(2 * gap, 2 * gap - 2, 2 * gap + 2, dict(images=1.0), 9)
        rows = [Row('random weights', runs[0], None, {}), Row('ODIS', runs[1], found, {})]
        tables.append(Table(100.0, 20 * 10**k, rows))
    return Outcome(plan, 'val', 9, tables)


def test_labels_are_said_to_be_saved_where_a_gain_is_shown():
    assert 'times as many' in recommendation(outcome_of(2, 0.5))
    assert recommendation(outcome_of(0.5, 2)) == 'Start from ODIS.', 'with few labels no gain was shown'


def test_gain_and_harm_are_not_called_nothing():
    assert recommendation(outcome_of(2, -2)).startswith('More labels turn the gain of ODIS into harm')
    assert recommendation(outcome_of(0.5, -2)).startswith('Keep random weights: within this budget nothing')


def test_detectors_that_find_nothing_are_no_verdict():
    outcome = outcome_of(0, 0)
    assert headline(outcome).startswith('No gain is shown')
    for table in outcome.tables:
        for row in table.rows:
            row.runs.value[:] = 0
    assert headline(outcome).startswith('Nothing can be said: no detector has found anything')
    assert recommendation(outcome).startswith('Train the detectors for longer (--set detector.iterations=900)')


def test_a_measure_that_does_not_vary_has_no_correlation():
    starts = [Start(str(i), (Step(file='x'),)) for i in range(5)]
    plan = Plan(Data(root='x'), tuple(starts), seeds=SimpleNamespace(detector=1))
    measures = {(start.name, 0, 1.0): SimpleNamespace(name=start.name) for start in starts}
    results = {s.name: dict(metrics=dict(box_pool=5.0, object_auc=int(s.name)), random={}) for s in starts}
    runs = {DetectorRun(start.name, 0, 100.0, 0): (float(start.name), None) for start in starts}
    outcome = SimpleNamespace(lengths={}, measures={}, correlations={})
    add_measures(outcome, SimpleNamespace(plan=plan, measures=measures), runs, results)
    assert outcome.correlations == {'object_auc': (pytest.approx(1), 5)}
