"""Faults of a config that would only show late, or never: told before training."""

import inspect
import re
from pathlib import Path
from typing import List, Optional

from mmengine.config import Config
from mmpretrain.models import VisionTransformer

from ..models.selfsup.base import TeacherStudent
from ..utils.errors import ConfigError, nearest
from ..utils.nested import walk
from .classes import arguments_of, find_class, registries


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


def check_classifier(cfg: Config) -> List[str]:
    """Look at a classifier on class folders, such as a linear probe, before mmpretrain does; return warnings.

    Raises:
        ConfigError: the training and the validation folder have different classes, which mmpretrain numbers in each by
            itself, there are more of them than the head has, fewer than the evaluation counts, or more blocks are
            frozen than there are.
    """
    model = cfg.get('model') or {}
    if not str(model.get('type')).endswith('ImageClassifier'):
        return []
    train, val = (_class_folders(cfg.get(f'{part}_dataloader')) for part in ('train', 'val'))
    if train and val and train != val:
        only = sorted(set(train) ^ set(val))
        raise ConfigError(
            f'the training and the validation folder have different classes ({", ".join(only[:4])} in one of them '
            'only), so that labels of one would be of other classes in the other: give both the same class folders.'
        )
    classes = (model.get('head') or {}).get('num_classes')
    if isinstance(classes, int) and classes < len(train or val):
        count = len(train or val)
        raise ConfigError(f'model.head.num_classes={classes}, and there are {count} class folders: set it to {count}.')
    evaluator = cfg.get('val_evaluator')
    top = evaluator.get('topk') if isinstance(evaluator, dict) else None
    if isinstance(classes, int) and isinstance(top, (list, tuple)) and max(top, default=0) > classes:
        raise ConfigError(f'val_evaluator.topk={tuple(top)}, and there are {classes} classes: set it to (1,).')
    backbone = model.get('backbone') or {}
    arch, frozen = backbone.get('arch', 'base'), backbone.get('frozen_stages', -1)
    arch = arch if isinstance(arch, dict) else VisionTransformer.arch_zoo.get(arch, {})
    depth = arch.get('num_layers', frozen)
    if not str(backbone.get('type')).endswith('VisionTransformer') or frozen < 1 or frozen == depth:
        return []
    text = f'model.backbone.frozen_stages={frozen}, and the backbone has {depth} blocks'
    if frozen > depth:
        raise ConfigError(f'{text}: set it to {depth}.')
    return [f'{text}, of which the others are trained: for a linear probe set it to {depth}']


def _class_folders(loader: Optional[dict]) -> List[str]:
    """Names of the class folders of a ``CustomDataset``; none for another data set."""
    dataset = (loader or {}).get('dataset') or {}
    if not str(dataset.get('type')).endswith('CustomDataset') or dataset.get('ann_file'):
        return []
    prefix = dataset.get('data_prefix') or ''
    folder = Path(dataset.get('data_root') or '', prefix.get('img_path', '') if isinstance(prefix, dict) else prefix)
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def explain_build_error(error: Exception, cfg: Config) -> Optional[str]:
    """Return one sentence for a wrong or missing argument of a class, an unregistered type, or synced batch norms
    without GPUs; None for other errors."""
    text = str(error.args[0]) if error.args else ''
    if re.search('SyncBatchNorm .*GPU', text):  # torch's, from DDP or the first step
        synced = (path for path, node in walk(cfg._cfg_dict) if isinstance(node, dict) and node.get('type') == 'SyncBN')
        if path := next(synced, ''):
            return f"{path}.type='SyncBN' needs a GPU for each rank: on CPUs set it to 'BN1d', in a detector to 'BN'"
        return 'sync_bn needs a GPU for each rank: on CPUs set sync_bn=None'
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
        known = {name for registry in registries() for name in registry.module_dict}
        hint = nearest(found[1].rpartition('.')[2], known) or '; is its package in custom_imports?'
        return f'{path}.type: no class {found[1]!r} is registered as {found[2]}{hint}'
    return None
