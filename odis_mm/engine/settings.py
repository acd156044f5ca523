"""What a run was told, kept in its checkpoints, and what another start of it was told differently."""

import warnings
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Tuple

from mmengine.optim import _ParamScheduler

# parts of a config that decide the training; the rest names places, logs, validation
PARTS = (
    'model',
    'train_dataloader',
    'train_cfg',
    'optim_wrapper',
    'param_scheduler',
    'auto_scale_lr',
    'default_hooks',
    'custom_hooks',
    'randomness',
    'runner_type',
    'strategy',
    'sync_bn',
)
_MOVING = {'last_step', '_global_step', '_last_value', 'verbose'}  # of a scheduler's state: what its steps change


class Change(NamedTuple):
    """A setting that differs from the checkpoint's."""

    key: str
    then: Any
    now: Any

    def __str__(self) -> str:
        return f'{self.key}: {self.then!r} -> {self.now!r}'


def settings(cfg: Mapping, ranks: int) -> Dict[str, Any]:
    """Return the settings of a run by dotted path: plain values, for its checkpoints."""
    flat = {'ranks': ranks}
    for part in PARTS:
        if part in cfg:
            flat.update(_leaves(cfg[part], part))
    return flat


def _leaves(node: Any, path: str) -> Iterable[Tuple[str, Any]]:
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _leaves(value, f'{path}.{key}')
    elif isinstance(node, (list, tuple)) and any(isinstance(value, (Mapping, list, tuple)) for value in node):
        for index, value in enumerate(node):
            yield from _leaves(value, f'{path}.{index}')
    elif isinstance(node, (list, tuple)):
        yield path, [value if _plain(value) else repr(value) for value in node]
    else:
        yield path, node if _plain(node) else repr(node)


def _plain(value: Any) -> bool:
    return value is None or type(value) in (bool, int, float, str)


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> List[Change]:
    """Return what differs, in the order of the new settings; a setting that one side lacks is None there."""
    keys = [*now, *(key for key in then if key not in now)]
    return [Change(key, then.get(key), now.get(key)) for key in keys if then.get(key) != now.get(key)]


def same_schedule(schedulers: List[_ParamScheduler], states: List[dict]) -> bool:
    """Return whether the schedulers of a checkpoint are these, however far they have gone."""
    ours = [{k: v for k, v in scheduler.state_dict().items() if k not in _MOVING} for scheduler in schedulers]
    return ours == [{k: v for k, v in state.items() if k not in _MOVING} for state in states]


def fast_forward(schedulers: List[_ParamScheduler], iterations: int, epoch_length: int) -> None:
    """Step fresh schedulers as ``iterations`` of training would have: the optimizer then has the values of that
    iteration.

    mmengine's schedulers compute each value from the one before, so there is no shorter way: about 10 s for 200,000
    iterations.
    """
    by_iteration = [scheduler for scheduler in schedulers if not scheduler.by_epoch]
    by_epoch = [scheduler for scheduler in schedulers if scheduler.by_epoch]
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='(Detected call of|Seems like).*', category=UserWarning)
        for iteration in range(1, iterations + 1):
            for scheduler in by_iteration:
                scheduler.step()
            if iteration % epoch_length == 0:
                for scheduler in by_epoch:
                    scheduler.step()
