"""The card beside an exported backbone: what it is, what it was made from, by what, and what is known of it so far."""

import datetime
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Dict

import torch
from mmengine.dist import get_world_size
from torch import nn

from ..transfer import fingerprint
from ..utils.environment import command_line
from ..utils.files import atomic_write
from ..version import __version__

METRICS = 'frozen_metrics'  # where the latest values of frozen features lie in the message hub, hence in checkpoints


def facts(runner, model: nn.Module, state: Dict[str, torch.Tensor], iteration: int) -> Dict[str, str]:
    """Return the lines of the card by their titles, from a pretraining run.

    Args:
        runner: mmengine's.
        model: The pretraining model, unwrapped.
        state: The exported tensors.
        iteration: How many iterations made them.
    """
    config = runner.cfg
    loader = config.get('train_dataloader') or {}
    dataset = loader.get('dataset', {}) if isinstance(loader, dict) else {}
    batch = runner.train_dataloader.batch_size or 0
    accumulated = getattr(runner.optim_wrapper, '_accumulative_counts', 1)
    metrics = runner.message_hub.runtime_info.get(METRICS, {})
    arch = (config.get('model') or {}).get('backbone', {})
    size = ', '.join(f'{key} {arch[key]}' for key in ('arch', 'depth', 'patch_size', 'img_size') if key in arch)
    return {
        'method': type(model).__name__,
        'backbone': f'{type(model.branch("teacher")).__name__}{f" ({size})" if size else ""}, the teacher, '
        f'{len(state)} tensors, '
        f'{sum(value.numel() for value in state.values()) / 1e6:.1f} M values',
        # under the names that the line of DetectorInit is made from
        'fingerprint': fingerprint({name.removeprefix('backbone.'): value for name, value in state.items()}),
        'config': config.filename or 'none (built by hand)',
        'data': ', '.join(
            [
                f'{key} {dataset[key]}'
                for key in ('type', 'data_root', 'ann_file', 'data_prefix', 'data_fraction')
                if key in dataset
            ]
            + [f'{len(runner.train_dataloader.dataset)} images']
        ),
        'training': f'{iteration} of {runner.max_iters} iterations ({iteration / len(runner.train_dataloader):.4g} '
        'epochs), '
        f'{get_world_size()} ranks x {batch} images x {accumulated} accumulated, seed {runner.seed}',
        'metrics so far': ', '.join(f'{key} {value:.1f}' for key, value in metrics.items())
        or 'none measured (add KNNHook or RegionProxyHook)',
        'versions': ', '.join(
            [
                f'odis_mm {__version__}',
                f'Python {platform.python_version()}',
                f'torch {torch.__version__}',
                *_packages(),
            ]
        ),
        'command': f'`{command_line()}`',
        'date': datetime.datetime.now().astimezone().isoformat(timespec='seconds'),
    }


def _packages():
    """mm packages by whichever of their two names is installed."""
    for names in (('mmengine', 'onedl-mmengine'), ('mmcv', 'onedl-mmcv'), ('mmpretrain', 'onedl-mmpretrain')):
        for name in names:
            try:
                yield f'{name} {version(name)}'
                break
            except PackageNotFoundError:
                continue


def write_card(path: str, title: str, lines: Dict[str, str]) -> None:
    """Write the facts as Markdown.

    Raises:
        FileWriteError: see :func:`atomic_write`.
    """
    text = f'# {title}\n\n' + ''.join(f'- **{name}**: {value}\n' for name, value in lines.items())
    text += (
        '\nTensors only, under `backbone.*`. A detector: `odis-mm finetune --data DIR --init FILE`, or '
        '`odis-mm train CONFIG --init FILE`; other libraries: `odis-mm transfer FILE OUT --to LAYOUT`.\n'
    )
    atomic_write(path, lambda file: file.write(text.encode()))
