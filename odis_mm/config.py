"""Finding, reading, overriding and checking configs.

A misspelt key ends in one sentence that names it, where it stands and what was probably meant.
"""

import difflib
import inspect
import os
import re
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, Optional, Set, Tuple, Union

import mmengine.registry
from mmengine.config import Config, DictAction
from mmengine.registry import Registry
from mmengine.runner import Runner

from .utils.errors import ConfigError

# what mmengine reads from a config beside the arguments of the Runner
_OTHER_KEYS = {
    'activation_checkpointing',
    'compile',
    'custom_imports',
    'efficient_conv_bn_eval',
    'env_cfg',
    'find_unused_parameters',
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
    if not path.is_file():
        shipped = shipped_configs()
        wanted = Path(str(name).removesuffix('.py')).as_posix()
        found = [p for key, p in shipped.items() if wanted in (key, key.rpartition('/')[2])]
        if not found:
            names = [*shipped, *(key.rpartition('/')[2] for key in shipped)]
            hint = nearest(wanted, names) or f' ({", ".join(shipped)})'
            raise ConfigError(f'no config {str(name)!r}: it is neither a file nor a shipped recipe{hint}')
        path = found[0]
    for variable in ('COCO_ROOT', 'IMAGENET_ROOT', 'ADE20K_ROOT'):
        if not os.environ.get(variable, 'set'):
            del os.environ[variable]  # empty means unset
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
    """Let stand-ins take the place of data roots in the environment that mmengine, which pastes them into the text of a config, would read
    as code or as a pattern: paths with a backslash, a quote, or the like."""
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
        # mmengine strips the blanks out of any value; a plain text, such as a path, keeps them
        try:
            options[key] = value if ' ' in value and value[0] not in '[(' else DictAction._parse_iterable(value)
        except (RecursionError, AssertionError) as error:
            raise ConfigError(
                f'--cfg-options {pair!r}: the value must be a number, text, or a list or tuple of such; '
                'for anything nested deeper write a config that inherits from this one.'
            ) from error
    return options


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
        try:
            cfg.merge_from_dict({key.lstrip('+'): value})
        except (AttributeError, KeyError, TypeError) as error:
            raise ConfigError(f'--cfg-options {key} does not fit the config: {error}') from error


def _check_option(cfg: Config, key: str) -> None:
    parts = key.split('.')
    if parts[0] in cfg and parts[0] not in RUNNER_KEYS:
        users = [path for path, value in _walk(cfg._cfg_dict) if value == cfg[parts[0]] and path != parts[0]]
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
                known, closed = (RUNNER_KEYS, True) if depth == 0 else _arguments(find_class(node.get('type')))
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


def check_schedule(cfg: Config) -> None:
    """Refuses a schedule part that begins when training is over (a shortened run with the full warm-up).

    Raises:
        ConfigError: naming the part and the options that shorten the warm-up.
    """
    train_cfg, schedulers = cfg.get('train_cfg') or {}, cfg.get('param_scheduler') or []
    for i, part in enumerate(schedulers if isinstance(schedulers, list) else [schedulers]):
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
    """Let the backbone take images of as many channels as ``LoadObjectImage(channels=...)`` of the training data gives.

    Raises:
        ConfigError: the steps differ, the backbone is set to another number, or the means and deviations are of another number.
    """
    steps = [
        node
        for _, node in _walk(cfg.train_dataloader)
        if isinstance(node, dict) and node.get('type') == 'LoadObjectImage'
    ]
    counts = sorted({step.get('channels', 3) for step in steps})
    if len(counts) > 1:
        raise ConfigError(
            f'train_dataloader reads images of {" and ".join(map(str, counts))} channels: set one number in all its LoadObjectImage.'
        )
    model = cfg.get('model') or {}
    backbone, channels = model.get('backbone'), counts[0] if counts else 3
    if not isinstance(backbone, dict) or (channels == 3 and backbone.get('in_channels', 3) == 3):
        return
    if backbone.setdefault('in_channels', channels) != channels:
        raise ConfigError(
            f'model.backbone.in_channels={backbone.in_channels}, but the training images have {channels} channels (LoadObjectImage.channels): '
            'set both to one number.'
        )
    preprocessor = model.get('data_preprocessor') or {}
    for name in ('mean', 'std'):
        found = len(preprocessor.get(name) or (0, 0, 0))
        if found != channels:
            raise ConfigError(
                f'model.data_preprocessor.{name} holds {found} numbers for images of {channels} channels: odis-mm stats computes mean and std '
                'of the data.'
            )


def explain_build_error(error: Exception, cfg: Config) -> Optional[str]:
    """One sentence for a wrong or missing argument of a class, or an unregistered type; None for other errors."""
    text = str(error.args[0]) if error.args else ''
    if found := re.search(r"(\w+)(?:\.__init__)?\(\) got an unexpected keyword argument '(\w+)'", text):
        name, key = found.groups()
        paths = [
            (path, node)
            for path, node in _walk(cfg._cfg_dict)
            if isinstance(node, dict) and 'type' in node and key in node
        ]
        # the class that complains may be a base of the one in the config
        paths.sort(
            key=lambda item: name not in [c.__name__ for c in inspect.getmro(find_class(item[1]['type']) or object)]
        )
        if paths:
            path, node = paths[0]
            hint = nearest(key, _arguments(find_class(node['type']))[0]) or ': remove it'
            return f'{path}: {node["type"]} takes no argument {key!r}{hint}'
    if found := re.search(
        r'(\w+)(?:\.__init__)?\(\) missing \d+ required (?:positional|keyword-only) arguments?: (.+)', text
    ):
        for path, node in _walk(cfg._cfg_dict):
            if isinstance(node, dict) and str(node.get('type', '')).rpartition('.')[2] == found[1]:
                return f'{path}: {node["type"]} needs the argument {found[2]}'
    if found := re.search(r'^([\w.]+) is not in the (.+?) registry', text):
        path = next(
            (path for path, node in _walk(cfg._cfg_dict) if isinstance(node, dict) and node.get('type') == found[1]),
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


def _arguments(cls: Optional[type]) -> Tuple[Set[str], bool]:
    """Names of a class's arguments, following **kwargs up the bases; and whether these are all."""
    names: Set[str] = set()
    for base in inspect.getmro(cls) if cls else ():
        if '__init__' in vars(base) and base is not object:
            parameters = list(inspect.signature(base.__init__).parameters.values())[1:]
            names |= {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
            if not any(p.kind is p.VAR_KEYWORD for p in parameters):
                return names, True
    return names, False


def _walk(node: Any, path: str = '') -> Iterator[Tuple[str, Any]]:
    """All (dotted path, value) below a node."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, (list, tuple)) else ()
    for key, value in items:
        below = f'{path}.{key}' if path else str(key)
        yield below, value
        yield from _walk(value, below)
