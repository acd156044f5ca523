"""Finding, reading, overriding and checking configs.

A misspelt key ends in one sentence that names it, where it stands and what was probably meant.
"""

import ast
import difflib
import inspect
import os
import re
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Optional, Set, Tuple, Union

import mmengine.registry
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import Registry
from mmengine.runner import Runner

from .models.selfsup.base import TeacherStudent
from .utils.errors import ConfigError
from .utils.noise import quiet_console

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
RUNNER_KEYS = (set(inspect.signature(Runner.__init__).parameters) | _OTHER_KEYS) - {'self', 'cfg'}


def config_root() -> Path:
    """Where the shipped configs lie: in the installed wheel, or in the checkout."""
    package = Path(__file__).resolve().parent
    installed = package / '.mim' / 'configs'
    return installed if installed.is_dir() else package.parent / 'configs'


def shipped_configs() -> Dict[str, Path]:
    """Name (``odis_vits_coco``, ``mask_rcnn/...``) to path of every recipe that comes with the package."""
    root = config_root()
    paths = [path for path in sorted(root.rglob('*.py')) if '_base_' not in path.parts]
    return {path.relative_to(root).with_suffix('').as_posix(): path for path in paths}


def load_config(name: Union[str, Path], options: Optional[Dict[str, Any]] = None) -> Config:
    """Reads a config file, or a shipped recipe by its name, and applies ``--cfg-options``.

    Args:
        name: A path, or a name from :func:`shipped_configs` (its last part will do).
        options: See :func:`apply_options`.

    Raises:
        ConfigError: no such config, a syntax error in it, or a key that nothing reads.
    """
    path = Path(name)
    if path.suffix in ('.pth', '.pt', '.safetensors', '.ckpt'):
        raise ConfigError(
            f'{path} is a checkpoint where a config is expected: give the config first, and the file by --resume, '
            '--init or as second argument of test.'
        )
    if not path.is_file():
        shipped = shipped_configs()
        wanted = Path(str(name).removesuffix('.py')).as_posix()
        found = [p for key, p in shipped.items() if wanted in (key, key.rpartition('/')[2])]
        if not found:
            names = [*shipped, *(key.rpartition('/')[2] for key in shipped)]
            hint = nearest(wanted, names) or f' ({", ".join(shipped)})'
            raise ConfigError(f'no config {str(name)!r}: it is neither a file nor a shipped recipe{hint}')
        path = found[0]
    for variable in ('COCO_ROOT', 'IMAGENET_ROOT', 'ADE20K_ROOT', 'ODIS_DEMO_ROOT'):
        if not os.environ.get(variable, 'set'):
            del os.environ[variable]  # empty means unset
    quiet_console(MMLogger.get_current_instance())
    try:
        with _plain_roots() as roots:
            cfg = Config.fromfile(str(path))
        for stand_in, root in roots.items():
            cfg._cfg_dict = _replaced(cfg._cfg_dict, stand_in, root)
    except (SyntaxError, AttributeError, KeyError, FileNotFoundError, TypeError) as error:
        raise ConfigError(f'{path} cannot be read as a config: {error}') from error
    apply_options(cfg, options or {})
    check_top_level(cfg)
    return cfg


@contextmanager
def _plain_roots() -> Iterator[Dict[str, str]]:
    """Let stand-ins take the place of data roots in the environment that mmengine, which pastes them into the text of a
    config, would read as code or as a pattern: paths with a backslash, a quote, or the like."""
    odd = {
        name: value
        for name, value in os.environ.items()
        if name.endswith('_ROOT') and not re.fullmatch(r'[\w\-./~:+@,= ]*', value)
    }
    roots = {}
    for name, value in odd.items():
        os.environ[name] = f'<{name}>'
        roots[os.environ[name]] = value
    try:
        yield roots
    finally:
        os.environ.update(odd)


def _replaced(node: Any, old: str, new: str) -> Any:
    """A config's dicts and lists with a part of their texts replaced."""
    if isinstance(node, dict):
        for key, value in node.items():
            node[key] = _replaced(value, old, new)
    elif isinstance(node, (list, tuple)):
        return type(node)(_replaced(value, old, new) for value in node)
    return node.replace(old, new) if isinstance(node, str) else node


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """' Did you mean ...?' for the most similar known name, or ''."""
    match = difflib.get_close_matches(name, sorted(map(str, known)), 1, cutoff)
    return f'; did you mean {match[0]!r}?' if match else ''


def parse_options(pairs: Iterable[str]) -> Dict[str, Any]:
    """``KEY=VALUE`` texts of a command line as the options of :func:`load_config`.

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
    """Sets ``--cfg-options`` in place.

    A key must exist in the config, be an argument of the class that the enclosing dict builds, or be marked as new by
    a leading '+'.

    Args:
        cfg: The config.
        options: {'train_dataloader.batch_size': 8, '+notes.by': 'me', ...}

    Raises:
        ConfigError: for a key that nothing would read.
    """
    for key, value in options.items():
        if not key.startswith('+'):
            _check_option(cfg, key)
        _check_names(key, value)
        try:
            cfg.merge_from_dict({key.lstrip('+'): value})
        except (AttributeError, KeyError, TypeError) as error:
            raise ConfigError(f'--cfg-options {key} does not fit the config: {error}') from error


def _check_names(key: str, value: Any) -> None:
    """Refuse one text where a list of class names belongs: mmdet would take it letter by letter."""
    if key.rpartition('.')[2].lower() != 'classes' or not isinstance(value, str) or os.path.isfile(value):
        return
    names = tuple(part.strip() for part in value.split(','))
    raise ConfigError(
        f'--cfg-options {key}: the class names must be a list, and {value!r} is one text; write "{key}={names!r}" '
        '(with the quotes).'
    )


def _check_option(cfg: Config, key: str) -> None:
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
    """Refuses a top-level key that is one slip away from one that mmengine reads (``train_dataloder``).

    Raises:
        ConfigError: naming both.
    """
    # test_pipeline is a usual variable of a file, not a slip of tta_pipeline
    known = {key for key in RUNNER_KEYS if not key.endswith('_pipeline')}
    for key in cfg:
        hint = '' if key in RUNNER_KEYS else nearest(key, known, cutoff=0.88)
        if hint:
            raise ConfigError(f'{cfg.filename or "config"}: nothing reads the key {key!r}{hint}')


LENGTHS = ('max_epochs', 'max_iters')
POINTS = ('begin', 'end', 'T_max', 'milestones', 'step_size', 'total_steps')  # of a scheduler, in its own unit
ENDLESS = 10**9  # mmengine's 'for ever'


def fit_schedule(cfg: Config) -> List[str]:
    """Scale warm-up and schedule of a config whose length was changed, in place; return what was done, for the log.

    The file that the config was read from tells the length that its schedule was written for. What the options set
    themselves stays, and what followed it in the file still does: a part that begins where the warm-up ends, a T_max
    from begin to end. Epochs that are no whole numbers any more are turned into iterations by :func:`in_iterations`,
    once the length of an epoch is known.

    Args:
        cfg: After its options were applied.
    """
    parts, length = _parts(cfg), cfg.get('train_cfg') or {}
    if not parts or not cfg.filename or not os.path.isfile(cfg.filename):
        return []
    try:
        file = load_config(cfg.filename)
    except Exception:  # a file that has changed or cannot be read any more tells nothing
        return []
    written, before = _parts(file), file.get('train_cfg') or {}
    unit = next((unit for unit in LENGTHS if length.get(unit) and before.get(unit)), None)
    if (
        unit is None
        or length[unit] == before[unit]
        or [p.get('type') for p in parts] != [p.get('type') for p in written]
    ):
        return []
    factor, told, kept = length[unit] / before[unit], [], []
    for index, (part, was) in enumerate(zip(parts, written)):
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
            if was['T_max'] == was.get('end', before[unit]) - was.get('begin', 0):
                part['T_max'] = part.get('end', length[unit]) - part.get('begin', 0)
    where = os.path.basename(cfg.filename)
    lines = [f'train_cfg.{unit} is {before[unit]} in {where} and {length[unit]} here: the schedule is scaled with it']
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
    """Refuse a schedule part that begins when training is over.

    Raises:
        ConfigError: naming the part and the options that shorten the warm-up.
    """
    train_cfg = cfg.get('train_cfg') or {}
    for i, part in enumerate(_parts(cfg)):
        unit = 'epoch' if part.get('by_epoch', True) else 'iteration'
        total = train_cfg.get('max_epochs' if unit == 'epoch' else 'max_iters')
        begin = part.get('begin', 0)
        if total is not None and begin and begin >= total:
            raise ConfigError(
                f'param_scheduler.{i} ({part["type"]}) begins at {unit} {begin}, but training ends at {unit} '
                f'{total}: shorten the warm-up, e.g. '
                f'--cfg-options param_scheduler.{i - 1}.end=1 param_scheduler.{i}.begin=1 (with two {unit}s or more).'
            )


def follow_channels(cfg: Config) -> None:
    """Let the backbone take images of as many channels as ``LoadObjectImage(channels=...)`` of the training data gives,
    ``LoadDetectionImage`` in a detector.

    Raises:
        ConfigError: the steps differ, the backbone is set to another number, or the means and deviations are of another
            number.
    """
    steps = [
        node
        for _, node in walk(cfg.train_dataloader)
        if isinstance(node, dict) and node.get('type') in ('LoadObjectImage', 'LoadDetectionImage')
    ]
    counts = sorted({step.get('channels', 3) for step in steps})
    if len(counts) > 1:
        raise ConfigError(
            f'train_dataloader reads images of {" and ".join(map(str, counts))} channels: set one number in all its '
            'LoadObjectImage (LoadDetectionImage).'
        )
    model = cfg.get('model') or {}
    backbone, channels = model.get('backbone'), counts[0] if counts else 3
    if not isinstance(backbone, dict) or (channels == 3 and backbone.get('in_channels', 3) == 3):
        return
    if backbone.setdefault('in_channels', channels) != channels:
        raise ConfigError(
            f'model.backbone.in_channels={backbone.in_channels}, but the training images have {channels} channels '
            '(LoadObjectImage.channels): set both to one number.'
        )
    preprocessor = model.get('data_preprocessor') or {}
    if preprocessor.get('type') == 'DetDataPreprocessor':  # knows one channel and three
        preprocessor.update(type='ChannelsPreprocessor', bgr_to_rgb=False)
    for name in ('mean', 'std'):
        found = len(preprocessor.get(name) or (0, 0, 0))
        if found != channels:
            raise ConfigError(
                f'model.data_preprocessor.{name} holds {found} numbers for images of {channels} channels: odis-mm '
                'stats computes mean and std of the data.'
            )


def check_init(cfg: Config) -> None:
    """Refuse ways to name starting weights that load nothing, or leave the teacher random.

    Raises:
        ConfigError: an ``init_cfg`` without a type, or mmengine's 'Pretrained' in a pretraining.
    """
    model = cfg.get('model') or {}
    cls = find_class(model.get('type')) if isinstance(model, dict) else None
    pretraining = cls is not None and issubclass(cls, TeacherStudent)
    for path, node in (
        [('model.init_cfg', model.get('init_cfg')), *walk(model, 'model')] if isinstance(model, dict) else ()
    ):
        if path.rpartition('.')[2] != 'init_cfg' or not isinstance(node, dict):
            continue
        if 'type' not in node:
            remedy = (
                'a pretraining starts from weights by --init FILE'
                if pretraining
                else f"add {path}.type='VerifiedPretrained'"
            )
            raise ConfigError(f'{path} = {dict(node)} has no type, so nothing would be loaded: {remedy}.')
        if pretraining and str(node['type']).rpartition('.')[2] in ('Pretrained', 'PretrainedInit'):
            raise ConfigError(
                f"{path}: type='Pretrained' loads what happens to fit, and not the teacher, which is what is exported; "
                'a pretraining '
                'starts from weights by --init FILE.'
            )


def explain_build_error(error: Exception, cfg: Config) -> Optional[str]:
    """One sentence for a wrong or missing argument of a class, or an unregistered type; None for other errors."""
    text = str(error.args[0]) if error.args else ''
    if found := re.search(r"(\w+)(?:\.__init__)?\(\) got an unexpected keyword argument '(\w+)'", text):
        name, key = found.groups()
        paths = [
            (path, node)
            for path, node in walk(cfg._cfg_dict)
            if isinstance(node, dict) and 'type' in node and key in node
        ]
        # the class that complains may be a base of the one in the config
        paths.sort(
            key=lambda item: name not in [c.__name__ for c in inspect.getmro(find_class(item[1]['type']) or object)]
        )
        if paths:
            path, node = paths[0]
            hint = nearest(key, arguments_of(find_class(node['type']))[0]) or ': remove it'
            return f'{path}: {node["type"]} takes no argument {key!r}{hint}'
    if found := re.search(
        r'(\w+)(?:\.__init__)?\(\) missing \d+ required (?:positional|keyword-only) arguments?: (.+)', text
    ):
        for path, node in walk(cfg._cfg_dict):
            if isinstance(node, dict) and str(node.get('type', '')).rpartition('.')[2] == found[1]:
                return f'{path}: {node["type"]} needs the argument {found[2]}'
    if found := re.search(r'^([\w.]+) is not in the (.+?) registry', text):
        path = next(
            (path for path, node in walk(cfg._cfg_dict) if isinstance(node, dict) and node.get('type') == found[1]),
            'config',
        )
        known = {name for registry in _registries() for name in registry.module_dict}
        hint = nearest(found[1].rpartition('.')[2], known) or '; is its package in custom_imports?'
        return f'{path}.type: no class {found[1]!r} is registered as {found[2]}{hint}'
    return None


def find_class(type_: Any) -> Optional[type]:
    """The class that a config's ``type`` names, wherever it is registered; None if there is none."""
    if not isinstance(type_, str):
        return type_ if inspect.isclass(type_) else None
    scope, _, name = type_.rpartition('.')
    for registry in _registries():
        if name in registry.module_dict and scope in ('', registry.scope):
            found = registry.module_dict[name]
            return found if inspect.isclass(found) else None
    return None


def _registries() -> Iterator[Registry]:
    for root in vars(mmengine.registry).values():
        if isinstance(root, Registry):
            # only classes of packages in use: importing others to explain an error would take seconds
            yield from (root, *root.children.values())


def arguments_of(cls: Optional[type]) -> Tuple[Set[str], bool]:
    """Names of a class's arguments, following **kwargs up the bases; and whether these are all."""
    names: Set[str] = set()
    for base in inspect.getmro(cls) if cls else ():
        if '__init__' in vars(base) and base is not object:
            parameters = list(inspect.signature(base.__init__).parameters.values())[1:]
            names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
            if not any(p.kind is p.VAR_KEYWORD for p in parameters):
                return names, True
    return names, False


def walk(node: Any, path: str = '') -> Iterator[Tuple[str, Any]]:
    """All (dotted path, value) below a node."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, (list, tuple)) else ()
    for key, value in items:
        below = f'{path}.{key}' if path else str(key)
        yield below, value
        yield from walk(value, below)
