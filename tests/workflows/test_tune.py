"""Knobs that configs mark, and values drawn of them."""

import numpy as np
import pytest
from mmengine.config import Config

from odis_mm.config import load_config
from odis_mm.utils.errors import ConfigError
from odis_mm.workflows.tune import best_trial, draw_knobs, draw_trials, tunable

RECIPES = [f'{m}_{s}' for m in ('odis', 'ibot', 'gtsa', 'alfm') for s in ('demo', 'small')] + [
    'dino_demo',
    'faster-rcnn_small',
]


def test_every_drawn_value_is_one_that_the_knob_allows():
    knobs = dict(a=[1, 2, 3], b=dict(low=0.01, high=1.0, log=True), c=dict(low=2, high=3))
    drawn = [draw_knobs(knobs, np.random.default_rng(i)) for i in range(300)]
    assert {d['a'] for d in drawn} == {1, 2, 3}
    assert all(0.01 <= d['b'] <= 1 and 2 <= d['c'] <= 3 for d in drawn)
    assert 0.35 < np.mean([d['b'] < 0.1 for d in drawn]) < 0.65  # even over the decades
    assert draw_knobs(knobs, np.random.default_rng(7)) == draw_knobs(knobs, np.random.default_rng(7))


@pytest.mark.parametrize('name', RECIPES)
def test_every_knob_of_a_recipe_is_an_option_of_it(name):
    knobs = tunable([load_config(name)])
    assert len(knobs) >= 2
    for seed in range(5):
        load_config(name, draw_knobs(knobs, np.random.default_rng(seed)))


def test_a_wrong_knob_is_named_and_the_first_of_equal_trials_wins():
    with pytest.raises(ConfigError, match=r"tunable\['x'\] must be a list"):
        tunable([Config(dict(tunable=dict(x=3)))])
    assert best_trial([1.0, 3.0, 3.0]) == 1


def test_no_two_trials_are_alike_while_there_are_others():
    for seed in (b'random weights', b'ODIS', b'x'):
        trials = draw_trials([{}, dict(a=[1, 2], b=[3, 4])], 5, seed)
        assert trials[0] == ({}, {}) and len({str(sorted(values.items())) for _, values in trials}) == 5
        assert draw_trials([{}, dict(a=[1, 2], b=[3, 4])], 3, seed) == trials[:3]
    assert len(draw_trials([dict(a=[1])], 4, b'x')) == 4
