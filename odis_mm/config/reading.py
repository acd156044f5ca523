"""Finding and reading config files."""

import copy
import functools
import os
import re
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, Optional, Tuple, Union

from mmengine.config import Config
from mmengine.logging import MMLogger

from ..utils.errors import ConfigError
from ..utils.noise import quiet_console, quiet_imports
from ..utils.paths import config_root, find_config
from .options import apply_options, check_top_level

# a comparison's stages read configs in threads, and Python before 3.11.8 and 3.12.2 may raise SystemError when two
# parse at a time (github.com/python/cpython/issues/106905)
_parsing = threading.Lock()


def load_config(name: Union[str, Path], options: Optional[Dict[str, Any]] = None) -> Config:
    """Read a config file, or a shipped recipe by its name, and apply ``--cfg-options``.

    Args:
        name: See :func:`~odis_mm.utils.paths.find_config`.
        options: See :func:`apply_options`.

    Raises:
        ConfigError: no such config, a syntax error in it, or a key that nothing reads.
    """
    path = find_config(name)
    for variable in ('COCO_ROOT', 'IMAGENET_ROOT', 'ADE20K_ROOT', 'ODIS_DEMO_ROOT'):
        if not os.environ.get(variable, 'set'):
            del os.environ[variable]  # empty means unset
    quiet_console(MMLogger.get_current_instance())
    if config_root() in path.absolute().parents:
        cfg = copy.deepcopy(_read_shipped(path, _state_of_shipped()))
    else:
        cfg = _read(path)
    apply_options(cfg, options or {})
    check_top_level(cfg)
    return cfg


def _read(path: Path) -> Config:
    try:
        with _parsing, _plain_roots() as roots, quiet_imports():  # a config may import mmdet
            cfg = Config.fromfile(str(path))
        for stand_in, root in roots.items():
            cfg._cfg_dict = _replaced(cfg._cfg_dict, stand_in, root)
    except (SyntaxError, AttributeError, KeyError, FileNotFoundError, TypeError) as error:
        raise ConfigError(f'{path} cannot be read as a config: {error}') from error
    return cfg


@functools.lru_cache(maxsize=64)
def _read_shipped(path: Path, state: Tuple) -> Config:
    """Read a recipe once: for each file that a detector's derives from mmdet, mmengine reads a hundred metafiles, in
    0.6 s per recipe (Intel Xeon 2.8 GHz, 2026-11-26), and a comparison asks for its detector once per run."""
    return _read(path)


def _state_of_shipped() -> Tuple:
    """What a shipped recipe is read from: its files, which someone may edit, and data roots in the environment."""
    files = [(file, file.stat().st_mtime_ns) for file in config_root().rglob('*.py')]
    return *sorted(files), *sorted((name, value) for name, value in os.environ.items() if name.endswith('_ROOT'))


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
