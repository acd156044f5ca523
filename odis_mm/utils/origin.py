"""What a run started from, by the config that it wrote; as light as :mod:`~odis_mm.utils.paths`."""

import ast
from pathlib import Path
from typing import Iterable, Optional

from .errors import CheckpointError, ConfigError
from .files import PathLike
from .paths import holds_run

CONFIGS = dict(pretrain='pretrain.py', finetune='detector.py')  # that the commands write to their work dirs


def start_of(config: Path) -> Optional[str]:
    """Return ``model.backbone.init_cfg.checkpoint`` of a config as a run writes it; None: random weights.

    Raises:
        ConfigError: the file is no Python any more.
    """
    return _text_in_model(config, 'backbone', 'init_cfg', 'checkpoint')


def _text_in_model(config: Path, *keys: str) -> Optional[str]:
    try:
        tree = ast.parse(config.read_text('utf-8'))
    except (SyntaxError, ValueError) as error:
        raise ConfigError(
            f'{config}, which tells what its run started from, cannot be read as Python ({error}): repair it.'
        ) from None
    body = (node for node in tree.body if isinstance(node, ast.Assign))
    node: Optional[ast.expr] = next((part.value for part in body if ast.unparse(part.targets[0]) == 'model'), None)
    for key in keys:
        parts = node.keywords if isinstance(node, ast.Call) else []
        node = next((part.value for part in parts if part.arg == key), None)
    value = node.value if isinstance(node, ast.Constant) else None
    return value if isinstance(value, str) else None


def check_method(config: Path, method: str) -> None:
    """Refuse to go on with a run as one of another method, before its config is written anew.

    Args:
        config: That the run wrote beside its checkpoints.
        method: ``model.type`` of what would go on with it.

    Raises:
        ConfigError: the run is one of another method, or its config is no Python any more.
    """
    former = _text_in_model(config, 'type') if config.is_file() else None
    if former is not None and former.rpartition('.')[2] != method.rpartition('.')[2]:
        raise ConfigError(
            f'the run in {config.parent} is one of {former}, and this command would go on with it as {method}: name '
            f'its method, as in --method {former.lower()}, or begin another run with --work-dir.'
        )


def resumed_start(config: Path, init: Optional[PathLike], options: Iterable[str] = ()) -> Optional[PathLike]:
    """Return what a resumed run is said to start from: that of its beginning, so that its config keeps the record.

    Args:
        config: That the run wrote beside its checkpoints; without both, there is nothing to continue.
        init: What the command names.
        options: Keys of its ``--cfg-options``: where they name the file, they do so again, and nothing else does.

    Raises:
        ConfigError: another file, where the weights are those of the checkpoint.
        CheckpointError: the file is gone, and with it the shape of the backbone.
    """
    if not config.is_file() or not holds_run(config.parent):
        return init
    first = start_of(config)
    file = None if first is None or '://' in first else Path(first)
    gone = file is not None and not file.is_file()
    if init is not None:
        same = file is not None and file.resolve() == Path(init).resolve()
        moved = gone and file is not None and file.name == Path(init).name
        if not same and not moved:
            raise ConfigError(
                f'--init {init}: the run in {config.parent} started from {first or "random weights"} and goes on with '
                'the weights of its checkpoint: leave --init out to resume it, or begin another one with --work-dir.'
            )
        return init
    if any(key.startswith(('model.init_cfg', 'model.backbone.init_cfg')) for key in options):
        return None
    if gone:
        raise CheckpointError(
            f'the run in {config.parent} started from {first}, which is gone: put it back, or say where it is with '
            '--init.'
        )
    return file
