"""``--cfg-options``: read as plain values, refused where nothing would read them.

A misspelt key ends in one sentence that names it, where it stands and what was probably meant.
"""

import ast
import inspect
import logging
import os
import re
from typing import Any, Dict, Iterable, List

from mmengine.config import Config
from mmengine.runner import Runner

from ..utils.errors import ConfigError, nearest
from ..utils.nested import walk
from .classes import arguments_of, find_class

_NUMBERS = [  # key, whether it is a whole number, the least one; others end in a traceback, or train otherwise
    *((f'{part}_dataloader.batch_size', True, 1) for part in ('train', 'val', 'test')),
    *((f'{part}_dataloader.num_workers', True, 0) for part in ('train', 'val', 'test')),
    ('optim_wrapper.optimizer.lr', False, 0),
    ('optim_wrapper.optimizer.weight_decay', False, 0),
    ('optim_wrapper.accumulative_counts', True, 1),
    ('optim_wrapper.clip_grad.max_norm', False, 0),
    ('auto_scale_lr.base_batch_size', True, 1),
    ('train_cfg.max_epochs', False, 0),
    ('train_cfg.max_iters', False, 0),
    ('default_hooks.logger.interval', True, 1),
    ('default_hooks.checkpoint.count', True, 1),
    ('default_hooks.checkpoint.max_keep_ckpts', True, -1),
    ('default_hooks.health.interval', True, 1),
    ('default_hooks.schedule.weight_decay_end', False, 0),
    ('default_hooks.schedule.freeze_prototypes_epochs', False, 0),
    ('default_hooks.schedule.warm_heads', False, 0),
    ('randomness.seed', True, 0),
]
_DICTS = ['env_cfg', 'model', 'model.backbone', 'optim_wrapper.optimizer', 'randomness', 'train_dataloader.dataset']
_PATHS = {'ann_file', 'checkpoint', 'data_prefix', 'data_root', 'img', 'img_path', 'load_from', 'work_dir'}
# what mmengine reads from a config beside the arguments of the Runner
_OTHER_KEYS = {
    'activation_checkpointing',
    'compile',
    'custom_imports',
    'efficient_conv_bn_eval',
    'env_cfg',
    'find_unused_parameters',
    'load_from_allow',
    'model_wrapper_cfg',
    'runner_type',
    'strategy',
    'sync_bn',
    'tta_model',
    'tta_pipeline',
}
_NOTED = {'notes', 'tunable'}  # what odis_mm's own commands write and read
RUNNER_KEYS = (set(inspect.signature(Runner.__init__).parameters) | _OTHER_KEYS) - {'self', 'cfg'}
"""Top-level keys of a config that something reads."""


def parse_options(pairs: Iterable[str]) -> Dict[str, Any]:
    """Read ``KEY=VALUE`` texts of a command line as the options of :func:`load_config`.

    Raises:
        ConfigError: a text is not of that form, or its value is nested too deeply.
    """
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition('=')
        if not equals or not key:
            raise ConfigError(f'--cfg-options {pair!r} is not of the form KEY=VALUE (no spaces around the =).')
        try:
            options[key] = _parse_value(value)
        except (RecursionError, MemoryError) as error:
            raise ConfigError(
                f'--cfg-options {pair[:200]!r}: the value is nested too deeply; write a config that inherits from this '
                'one.'
            ) from error
    return options


def _parse_value(text: str) -> Any:
    """Return the Python literal that a text is; else true/false, inf, nan, a list of such (in brackets or by commas),
    or the text itself.

    Blanks within names and paths stay: ``['/my data/x']``, ``[traffic light,person]``, ``/my data/x``.
    """
    text = text.strip()
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = ...  # no literal
    if _is_plain(value):
        bare = isinstance(value, tuple) and not (text.startswith('(') and text.endswith(')'))
        return list(value) if bare else value
    if text.lower() in ('true', 'false'):
        return text.lower() == 'true'
    if text.lower().lstrip('+-') in ('inf', 'nan'):
        return float(text)
    if text[:1] + text[-1:] in ('[]', '()'):
        if re.search(r'\w\(', text):
            raise ConfigError(
                f'--cfg-options: {text[:200]!r} is no Python literal (numbers, texts in quotes, lists, dicts in '
                'braces); for anything nested deeper write a config that inherits from this one.'
            )
        parts = [_parse_value(part) for part in _split(text[1:-1])]
        return parts if text[0] == '[' else tuple(parts)
    if ',' in text and ' ' not in text:  # a text with blanks is a path or a sentence
        parts = _split(text)
        return [_parse_value(part) for part in parts] if len(parts) > 1 or text.endswith(',') else text
    return text


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def _split(text: str) -> List[str]:
    """Return the parts between commas that stand outside brackets and quotes; a comma at the end adds none."""
    parts, depth, quote = [''], 0, ''
    for character in text:
        if quote:
            quote = '' if character == quote else quote
        elif character in '\'"':
            quote = character
        elif character in '[({':
            depth += 1
        elif character in '])}':
            depth -= 1
        elif character == ',' and depth == 0:
            parts.append('')
            continue
        parts[-1] += character
    return parts if parts[-1].strip() else parts[:-1]


def apply_options(cfg: Config, options: Dict[str, Any]) -> None:
    """Set ``--cfg-options`` in place.

    A key must exist in the config, be an argument of the class that the enclosing dict builds, or be marked as new by
    a leading '+'.

    Args:
        cfg: The config.
        options: {'train_dataloader.batch_size': 8, '+notes.by': 'me', ...}

    Raises:
        ConfigError: for a key that nothing would read, and for parts, sizes of batches and the like that are none.
    """
    for key, value in options.items():
        if not key.startswith('+'):
            _check_option(cfg, key)
        _check_names(key, value)
        try:
            cfg.merge_from_dict({key.lstrip('+'): value})
        except (AttributeError, KeyError, TypeError) as error:
            raise ConfigError(f'--cfg-options {key} does not fit the config: {error}') from error
    for key in _DICTS:
        value = _value(cfg, key)
        if value is not ... and not isinstance(value, dict):
            raise ConfigError(f'{key} must be a dict, not {value!r}.')
    level = cfg.get('log_level', 'INFO')
    if isinstance(level, str) and not isinstance(logging.getLevelName(level), int):
        raise ConfigError(f'log_level must be DEBUG, INFO, WARNING or ERROR, not {level!r}.')
    weights = [path for path, _ in walk(cfg._cfg_dict) if re.fullmatch(r'model\.([\w.]+\.)?lambda_\w+', path)]
    for key, whole, least in (*_NUMBERS, *((path, False, 0) for path in weights)):
        value = _value(cfg, key)
        kinds = int if whole else (int, float)
        if value not in (None, ...) and (not isinstance(value, kinds) or isinstance(value, bool) or not value >= least):
            raise ConfigError(f'{key} must be {"a whole number" if whole else "a number"} from {least}, not {value!r}.')


def _value(cfg: Config, key: str) -> Any:
    """What stands at a dotted key; ... if nothing does."""
    value: Any = cfg._cfg_dict
    for part in key.split('.'):
        value = value.get(part, ...) if isinstance(value, dict) else ...
    return value


def drop_variables(cfg: Config, options: Iterable[str] = ()) -> None:
    """Take the variables of its file out of a config that was changed since: their values were used when the file was
    read, and need not be those that hold.

    Args:
        options: Keys that a user set; what they add stays.
    """
    added = {key.lstrip('+').partition('.')[0] for key in options}
    for key in set(cfg) - RUNNER_KEYS - _NOTED - added:
        cfg.pop(key)


def _check_names(key: str, value: Any) -> None:
    """Refuse one text where a list of class names belongs, which mmdet would take letter by letter, and a number, such
    as a folder named by its year, where a path does."""
    last = key.rpartition('.')[2]
    if last in _PATHS and isinstance(value, (int, float)) and not isinstance(value, bool):
        raise ConfigError(
            f'--cfg-options {key}: a path belongs there, and {value!r} was read as a number; write "{key}=\'NAME\'" '
            '(with the quotes).'
        )
    if last.lower() != 'classes' or not isinstance(value, str) or os.path.isfile(value):
        return
    names = tuple(part.strip() for part in value.split(','))
    raise ConfigError(
        f'--cfg-options {key}: the class names must be a list, and {value!r} is one text; write "{key}={names!r}" '
        '(with the quotes).'
    )


def _check_option(cfg: Config, key: str) -> None:
    if key == 'launcher':
        raise ConfigError('--cfg-options launcher would change nothing: say --launcher, as tools/dist_train.sh does.')
    parts = key.split('.')
    if parts[0] in cfg and parts[0] not in RUNNER_KEYS:
        users = [path for path, value in walk(cfg._cfg_dict) if value == cfg[parts[0]] and path != parts[0]]
        raise ConfigError(
            f'--cfg-options {key}: {parts[0]!r} is a variable of the config file, already used when options are '
            'applied, so setting it would change nothing; set the key that uses it'
            + (f', such as {users[0]}.' if users else '.')
        )
    node, path = cfg._cfg_dict, ''
    for depth, part in enumerate(parts):
        if isinstance(node, list):
            if not part.isdigit() or int(part) >= len(node):
                raise ConfigError(
                    f'--cfg-options {key}: {path} is a list of {len(node)}, so {part!r} must be an index below '
                    f'{len(node)}.'
                )
            node = node[int(part)]
        elif isinstance(node, dict):
            if part not in node:
                known, closed = (RUNNER_KEYS, True) if depth == 0 else arguments_of(find_class(node.get('type')))
                if part in known or part == '_delete_':
                    return
                where = path or 'the config'
                remedy = '' if closed and node.get('type') else f' (write +{key} to add it all the same)'
                raise ConfigError(
                    f'--cfg-options {key}: {where} has no key {part!r}{nearest(part, {*known, *node})}{remedy}'
                )
            node = node[part]
        else:
            raise ConfigError(f'--cfg-options {key}: {path} is {node!r}, which has no key {part!r}; set {path} itself.')
        path = f'{path}.{part}' if path else part


def check_top_level(cfg: Config) -> None:
    """Refuse a top-level key that is one slip away from one that mmengine reads (``train_dataloder``).

    Raises:
        ConfigError: naming both.
    """
    # test_pipeline is a usual variable of a file, not a slip of tta_pipeline
    known = {key for key in RUNNER_KEYS if not key.endswith('_pipeline')}
    for key in cfg:
        hint = '' if key in RUNNER_KEYS else nearest(key, known, cutoff=0.88)
        if hint:
            raise ConfigError(f'{cfg.filename or "config"}: nothing reads the key {key!r}{hint}')
