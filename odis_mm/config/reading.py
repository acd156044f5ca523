"""Finding and reading config files."""

import os
import re
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, Optional, Union

from mmengine.config import Config
from mmengine.logging import MMLogger

from ..utils.errors import ConfigError
from ..utils.noise import quiet_console, quiet_imports
from ..utils.paths import find_config
from .options import apply_options, check_top_level


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
    try:
        with _plain_roots() as roots, quiet_imports():  # a config may import mmdet
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
