"""The learning rate's schedule: as long as the run, and in iterations where that is asked for."""

import os
from typing import Any, List

from mmengine.config import Config

from ..utils.errors import ConfigError
from .reading import load_config

LENGTHS = ('max_epochs', 'max_iters')
POINTS = ('begin', 'end', 'T_max', 'milestones', 'step_size', 'total_steps')  # of a scheduler, in its own unit
MADE = '# made by odis_mm'  # in place of the text of a config's file: without any, mmengine would look for the file
ENDLESS = 10**9  # mmengine's 'for ever'


def fit_schedule(cfg: Config) -> List[str]:
    """Scale warm-up and schedule of a config whose length was changed, in place; return what was done, for the log.

    The file that the config was read from tells the length that its schedule was written for. What the options set
    themselves stays, and what followed it in the file still does: a part that begins where the warm-up ends, a T_max
    from begin to end. Epochs that are no whole numbers any more are turned into iterations by :func:`in_iterations`,
    once the length of an epoch is known.

    Args:
        cfg: After its options were applied. One that was made for its length (``cfg.text`` is :data:`MADE`) stays: the
            file of its name is that of the run which it continues, and had another length.
    """
    parts, length = _parts(cfg), cfg.get('train_cfg') or {}
    if not parts or cfg.text == MADE or not cfg.filename or not os.path.isfile(cfg.filename):
        return []
    try:
        file = load_config(cfg.filename)
    except Exception:  # a file that has changed or cannot be read any more tells nothing
        return []
    written, before = _parts(file), file.get('train_cfg') or {}
    then = next((unit for unit in LENGTHS if before.get(unit)), None)
    now = next((unit for unit in (then, *LENGTHS) if unit and length.get(unit)), None)
    if (
        not then
        or not now
        or (now == then and length[now] == before[then])
        or [p.get('type') for p in parts] != [p.get('type') for p in written]
        or (now != then and any(p.get(key) != was.get(key) for p, was in zip(parts, written) for key in POINTS))
    ):
        return []
    factor, told, kept = length[now] / before[then], [], []
    for index, (part, was) in enumerate(zip(parts, written)):
        if now != then:  # what is in the unit of the file's length goes to the unit of this one
            if was.get('by_epoch', True) != (then == 'max_epochs'):
                continue
            part['by_epoch'] = now == 'max_epochs'
            part.pop('convert_to_iter_based', None)
            if part['by_epoch']:
                part['convert_to_iter_based'] = True
        for key in POINTS:
            if key not in was:
                continue
            name = f'param_scheduler.{index}.{key}'
            if part.get(key) != was[key]:
                kept.append(name)
                continue
            part[key] = _scaled(was[key], factor, part.get('by_epoch', True))
            if part[key] != was[key]:
                told.append((name, was[key], index, key))
    for index, (part, was) in enumerate(zip(parts, written)):  # what hung together in the file
        for other, theirs in zip(parts, written):
            if f'param_scheduler.{index}.begin' not in kept and 0 < was.get('begin', 0) == theirs.get('end'):
                part['begin'] = other['end']
        if f'param_scheduler.{index}.T_max' not in kept and was.get('T_max') is not None:
            if was['T_max'] == was.get('end', before[then]) - was.get('begin', 0):
                part['T_max'] = part.get('end', length[now]) - part.get('begin', 0)
    where = os.path.basename(cfg.filename)
    here = length[now] if now == then else f'train_cfg.{now} {length[now]}'
    lines = [f'train_cfg.{then} is {before[then]} in {where} and {here} here: the schedule is scaled with it']
    changed = [f'{name} {old} -> {parts[index][key]}' for name, old, index, key in told if parts[index][key] != old]
    if changed:
        lines[0] += f' ({", ".join(changed)})'
    if kept:
        lines.append(f'as set by options, not scaled: {", ".join(kept)}')
    return lines if changed or kept else []


def _parts(cfg: Config) -> List[dict]:
    found = cfg.get('param_scheduler') or []
    found = found if isinstance(found, list) else [found]
    return found if all(isinstance(part, dict) and 'type' in part for part in found) else []


def _scaled(value: Any, factor: float, by_epoch: bool) -> Any:
    if isinstance(value, (list, tuple)):
        return [_scaled(entry, factor, by_epoch) for entry in value]
    if not value or value >= ENDLESS:
        return value
    scaled = round(value * factor, 6)
    if by_epoch:
        return int(scaled) if scaled == int(scaled) else scaled
    return max(1, round(scaled))


def in_iterations(parts: List[dict], epoch_length: int) -> List[dict]:
    """Return scheduler configs that mmengine can follow: with epochs turned into iterations if one of them names a part
    of an epoch, and without warm-ups of less than two iterations.

    (mmengine's ``LinearLR`` of one iteration would leave the learning rate at its first value for the whole run.)
    """

    def fractional(value: Any) -> bool:
        if isinstance(value, (list, tuple)):
            return any(map(fractional, value))
        return isinstance(value, float) and value % 1 != 0

    def count(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [count(entry) for entry in value]
        return value if not value or value >= ENDLESS else max(1, round(value * epoch_length))

    def short(part: dict) -> bool:
        unit = epoch_length if part.get('by_epoch', True) else 1
        warmup = str(part['type']).rpartition('.')[2].startswith(('Linear', 'Constant'))
        return warmup and round((part.get('end', ENDLESS) - part.get('begin', 0)) * unit) < 2

    by_epoch = [part for part in parts if part.get('by_epoch', True)]
    if not any(map(short, parts)) and not any(fractional(part.get(key)) for part in by_epoch for key in POINTS):
        return parts
    turned, left_out = [], {}
    for part in parts:
        gone = short(part)
        if part.get('by_epoch', True):
            part = {**part, 'by_epoch': False, **{key: count(part[key]) for key in POINTS if part.get(key) is not None}}
            part.pop('convert_to_iter_based', None)
        begin = part.get('begin', 0)
        if gone:
            left_out[part['end']] = begin
        elif begin in left_out:
            turned.append({**part, 'begin': left_out[begin]})  # begins where the warm-up would have
        else:
            turned.append(part)
    return turned


def check_schedule(cfg: Config) -> None:
    """Refuse a schedule that nothing moves, a part of it that begins when training is over, and a warm-up from 0.

    Raises:
        ConfigError: naming the part and the options that shorten the warm-up.
    """
    train_cfg = cfg.get('train_cfg') or {}
    if _parts(cfg) and (cfg.get('default_hooks') or {}).get('param_scheduler', ...) is None:
        raise ConfigError(
            'default_hooks.param_scheduler=None would leave the learning rate at the first value of its schedule, that '
            'of the warm-up: for a constant one set param_scheduler=None.'
        )
    for i, part in enumerate(_parts(cfg)):
        factor = part.get('start_factor', 1)
        if not isinstance(factor, (int, float)) or factor <= 0:  # mmengine divides by it
            raise ConfigError(f'param_scheduler.{i}.start_factor must be above 0, such as 1e-6, not {factor!r}.')
        unit = 'epoch' if part.get('by_epoch', True) else 'iteration'
        total = train_cfg.get('max_epochs' if unit == 'epoch' else 'max_iters')
        begin = part.get('begin', 0)
        if total is not None and begin and begin >= total:
            raise ConfigError(
                f'param_scheduler.{i} ({part["type"]}) begins at {unit} {begin}, but training ends at {unit} '
                f'{total}: shorten the warm-up, e.g. '
                f'--cfg-options param_scheduler.{i - 1}.end=1 param_scheduler.{i}.begin=1 (with two {unit}s or more).'
            )


def beyond_the_end(cfg: Config, epochs: float) -> List[str]:
    """Return a line for the log for each setting of a recipe that begins, or ends, at an epoch that a run of so many
    epochs does not reach."""
    found = []
    for name, least, effect in (
        ('model.head.correspondence_epoch', epochs, 'the loss of correspondence never begins'),
        # a warm-up as long as the run, up to a rounded number of epochs, is complete
        ('model.head.teacher_temp.warmup_epochs', epochs * 1.01, "the teacher's temperature does not reach its end"),
        ('default_hooks.schedule.freeze_prototypes_epochs', epochs, 'the prototypes are never trained'),
    ):
        value: Any = cfg
        for key in name.split('.'):
            value = value.get(key) if isinstance(value, (dict, Config)) else None
        if value and value >= least:
            found.append(f'{name}={value:g}, but the run has {epochs:.3g} epochs: {effect}; lower it by --cfg-options')
    return found
