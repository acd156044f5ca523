"""Random search over the knobs that a config marks as tunable, the same number of trials for every start."""

import math
from typing import Any, Dict, List, Sequence, Tuple

import numpy as np

from ..utils.errors import ConfigError

DRAWS = 100  # for a trial that is not there yet


def tunable(configs: Sequence[Any]) -> Dict[str, Any]:
    """Knobs of configs: their ``tunable``, option to a list of values or dict(low, high, log).

    Raises:
        ConfigError: a knob that is neither.
    """
    found: Dict[str, Any] = {}
    for cfg in configs:
        for option, values in (cfg.get('tunable') or {}).items():
            ranged = isinstance(values, dict) and {'low', 'high'} <= set(values) <= {'low', 'high', 'log'}
            if not ranged and not (isinstance(values, (list, tuple)) and values):
                raise ConfigError(
                    f'{cfg.filename}: tunable[{option!r}] must be a list of values or dict(low, high, log=True).'
                )
            found[option] = dict(values) if ranged else list(values)
    return found


def draw_knobs(knobs: Dict[str, Any], rng: np.random.Generator) -> Dict[str, Any]:
    """One value of each knob."""
    drawn: Dict[str, Any] = {}
    for option, values in knobs.items():
        if isinstance(values, list):
            drawn[option] = values[int(rng.integers(len(values)))]
        elif values.get('log'):
            drawn[option] = float(f'{math.exp(rng.uniform(math.log(values["low"]), math.log(values["high"]))):.3g}')
        else:
            drawn[option] = float(f'{rng.uniform(values["low"], values["high"]):.3g}')
    return drawn


def draw_trials(knob_sets: Sequence[Dict[str, Any]], trials: int, seed: Sequence[int]) -> List[Tuple[dict, ...]]:
    """Return values of sets of knobs for each trial: none for the first, which is the config as it is, and no two alike
    while there are others."""
    drawn: List[Tuple[dict, ...]] = [tuple({} for _ in knob_sets)]
    for k in range(1, trials):
        rng = np.random.default_rng((k, *seed))
        for _ in range(DRAWS):
            chosen = tuple(draw_knobs(knobs, rng) for knobs in knob_sets)
            if chosen not in drawn:
                break
        drawn.append(chosen)
    return drawn[:trials]


def best_trial(scores: List[float]) -> int:
    """The highest; the first of equal ones, so that the config as it is wins a tie."""
    return int(np.argmax(scores))
