"""The card beside an exported backbone: what it is, what it was made from, by what, and what is known of it so far."""

import datetime
import os.path as osp
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Dict

import torch
from mmengine.config import Config
from mmengine.dist import get_world_size
from torch import nn

from ..transfer import VitShape, fingerprint
from ..utils.environment import command_line
from ..utils.files import atomic_write
from ..version import __version__

METRICS = 'frozen_metrics'  # where the latest values of frozen features lie in the message hub, hence in checkpoints


def facts(runner, model: nn.Module, state: Dict[str, torch.Tensor], iteration: int) -> Dict[str, str]:
    """Return the lines of the card by their titles, from a pretraining run; what is not known has none.

    Args:
        runner: mmengine's.
        model: The pretraining model, unwrapped.
        state: The exported tensors.
        iteration: How many iterations made them.
    """
    own = {name.removeprefix('backbone.'): value for name, value in state.items()}
    shape, measured = VitShape.of(own), runner.message_hub.runtime_info.get(METRICS, {})
    size = f' of {shape.depth} blocks, {shape.width} channels, patches of {shape.patch_size} px' if shape else ''
    lines = {
        'method': type(model).__name__,
        'backbone': f'{type(model.branch("teacher")).__name__}{size}; the teacher, {len(own)} tensors, '
        f'{sum(value.numel() for value in own.values()) / 1e6:.1f} million values',
        'fingerprint of the weights': fingerprint(own),  # as in the line of DetectorInit
        'config': runner.cfg.filename,
        'data': _data(runner),
        'training': _training(runner, iteration),
        'measured so far': ', '.join(f'{key} {value:.1f}' for key, value in measured.items()),
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
    return {title: line for title, line in lines.items() if line}


def _data(runner) -> str:
    """How many images, and from where, as far as one folder and one file tell it."""
    loader = runner.cfg.get('train_dataloader') or {}
    dataset = loader.get('dataset', {}) if isinstance(loader, dict) else {}
    root, prefix = dataset.get('data_root') or '', dataset.get('data_prefix') or ''
    folder = osp.join(root, prefix) if isinstance(prefix, str) else root
    parts = [f'{len(runner.train_dataloader.dataset)} images']
    if folder:
        parts.append(f'{"every image of the " if whole_folder(runner.cfg) else ""}folder {osp.normpath(folder)}')
    if dataset.get('ann_file'):
        parts.append(f'annotations {osp.join(root, dataset["ann_file"])}')
    if dataset.get('data_fraction', 1) != 1:
        parts.append(f'{dataset["data_fraction"]:.4g} of all images')
    return ', '.join(parts)


def whole_folder(cfg: Config) -> str:
    """Return the folder all of whose images a config trains on; '' if a list or annotations choose among them."""
    dataset = (cfg.get('train_dataloader') or {}).get('dataset') or {}
    prefix = dataset.get('data_prefix') or ''
    part = dataset.get('ann_file') or dataset.get('data_fraction', 1) != 1
    if dataset.get('type') != 'ObjectDataset' or part or not isinstance(prefix, str):
        return ''
    return osp.abspath(osp.join(dataset.get('data_root') or '', prefix))


def _training(runner, iteration: int) -> str:
    ranks, batch = get_world_size(), runner.train_dataloader.batch_size or 0
    accumulated = getattr(runner.optim_wrapper, '_accumulative_counts', 1)
    return (
        f'{iteration} of {runner.max_iters} iterations ({iteration / len(runner.train_dataloader):.4g} epochs) of '
        f'{ranks * batch} images'
        + (f' ({batch} in each of {ranks} processes)' if ranks > 1 else '')
        + (f', {accumulated} of them to a step of the optimizer' if accumulated > 1 else '')
        + f', seed {runner.seed}'
    )


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
        '\nThe file holds the weights of the backbone and nothing that runs. For a detector: '
        '`odis-mm finetune --data DIR --init FILE`, or `odis-mm train CONFIG --init FILE`; for other libraries: '
        '`odis-mm transfer FILE OUT --to LAYOUT`.\n'
    )
    atomic_write(path, lambda file: file.write(text.encode()))
