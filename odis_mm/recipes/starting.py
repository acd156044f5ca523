"""Training that starts from a file: the backbone of a config takes the file's shape, and its weights, verified tensor
by tensor."""

from pathlib import Path
from typing import Any, List, Optional, Sequence

from mmengine.config import Config
from mmpretrain.models import VisionTransformer

from ..config import follow_channels, load_config
from ..datasets.reading import Reading
from ..engine.fit import holds_detector
from ..evaluation.frozen import IMAGENET_MEAN
from ..transfer import CheckpointError, Source, VitShape, read_checkpoint, read_meta, read_vit, told_grid
from ..transfer.resnet import find_resnet
from ..transfer.shape import State
from ..utils.errors import ConfigError
from ..utils.files import PathLike
from .detector import ALLOWED, loading_steps, set_backbone, set_normalisation, set_reading, told_reading, verified

KEPT = 'odis_vits_continue_coco'  # whose layer decay and warm-up of the heads are taken
KEPT_RATE = 0.1  # its learning rate in that of the recipe for random weights


def start_from(cfg: Config, init: PathLike, adapt: bool = False) -> List[str]:
    """Have a config start from the backbone of a file; return lines for the log.

    In pretraining student and teacher start from it, equal; neck and head are drawn anew. What the file needs beyond
    the config's arch is set (layer scale, registers, rotary positions, gated MLPs, eps of the norms), its normalisation
    is taken if it tells one.

    Args:
        cfg: Of a pretraining or a detector; changed.
        init: A file of any layout that :func:`read_vit` knows, or a ResNet.
        adapt: Take width, depth and patches from the file, too, and views of as many patches; a recipe that was made
            for another size refuses it otherwise.

    Raises:
        CheckpointError: the file cannot be read, is of another size, or has other patches than the config and its
            views.
    """
    init = Path(init).resolve()
    if 'roi_head' in cfg.model or 'bbox_head' in cfg.model:
        set_backbone(cfg, init)
        reading = told_reading(read_meta(init))
        if reading is None:
            return [f'--init: the detector starts from {init}']
        set_reading(cfg, reading)
        follow_channels(cfg)
        return [f'--init: the detector starts from {init}, and {_told(reading)}']
    state, meta = read_checkpoint(init), read_meta(init)
    detector = "a detector's checkpoint, of which the backbone is used" if holds_detector(state) else ''
    backbone = cfg.model.backbone
    init_cfg = verified(backbone, str(init))
    if not str(backbone.get('type')).endswith(('ObjectViT', 'VisionTransformer')):
        backbone.init_cfg = init_cfg
        kind = f', {detector}' if detector else ''
        return [f'--init: {init}{kind}; neck and head start from random weights', _normalisation(cfg, meta)]
    vit = _read_vit(state, init, meta, bool(detector), init_cfg.get('allow_unexpected', ()))
    shape = VitShape.of(vit.state)
    if not shape.cls_token:
        raise CheckpointError(
            f'{init} has no [CLS] token, which pretraining needs for its [OBJ] token (files for detectors lack it): '
            'take the file that it was made from.'
        )
    lines = [f'--init: {init}, {detector or vit.dialect}; neck and head start from random weights']
    own = _arch(backbone)
    if adapt:
        for part in (cfg.model.neck, cfg.model.head):
            if part.get('in_channels') == own['embed_dims']:
                part['in_channels'] = shape.width
        _scale_views(cfg, shape.patch_size)
    else:
        _check_size(shape, own, str(init))
        lines += _set_patch(cfg, shape, init)
    told = meta.get('num_heads') or vit.heads
    same = (shape.width, shape.depth) == (own['embed_dims'], own['num_layers'])
    if same and not (told or shape.head_width or shape.heads_differ):
        told = own['num_heads']  # of a recipe of this size; those of another one say nothing of the file
    backbone.arch = dict(
        embed_dims=shape.width,
        num_layers=shape.depth,
        num_heads=shape.heads(str(init), told),
        feedforward_channels=shape.mlp,
    )
    lines += _set_options(backbone, shape, vit, meta)
    if backbone.get('cls_beside_object') or backbone.get('num_object_tokens', 1) > 1:
        if not shape.object_tokens:
            init_cfg['allow_missing'] = [*init_cfg.get('allow_missing', ()), 'object_tokens']
    backbone.init_cfg = init_cfg
    return [*lines, _normalisation(cfg, meta)]


def _read_vit(state: State, init: Path, meta: dict, detector: bool, allowed: Sequence[str]) -> Source:
    what = f"{init} is a detector's checkpoint whose backbone pretraining cannot start from" if detector else str(init)
    if find_resnet(state) is not None:
        raise CheckpointError(
            f'{what}: it is a ResNet and the backbone of the recipe a ViT; name a file of a ViT, or train a recipe for '
            'ResNets, such as alfm_r50_coco.'
        )
    try:
        told = dict(source_grid=told_grid(meta), heads=meta.get('num_heads'))
        return read_vit(state, str(init), allow_unexpected=allowed, **told)
    except CheckpointError as error:
        if not detector:
            raise
        raise CheckpointError(f'{what}: it {str(error).removeprefix(f"{init} ")}') from error


def keep_weights(cfg: Config, iterations: int) -> str:
    """Have a recipe for random weights keep what those of a file know; return a line for the log.

    The measures are those of the recipes ``*_continue_coco``: a tenth of the learning rate, less of it from block to
    block, neck and head alone for the first part of the run, a slow teacher.

    Args:
        cfg: Of a pretraining; changed.
        iterations: Of the run, by which the teacher's momentum is chosen: it forgets over a quarter of them.
    """
    kept = load_config(KEPT)
    optim, momentum, warm = cfg.optim_wrapper, cfg.model.momentum, kept.default_hooks.schedule.warm_heads
    optim.optimizer.lr *= KEPT_RATE
    optim.paramwise_cfg = kept.optim_wrapper.paramwise_cfg
    for part in cfg.param_scheduler:
        if 'eta_min' in part:  # one number for all is above the rates of the lowest blocks, which would rise
            part['eta_min_ratio'] = part.pop('eta_min') / optim.optimizer.lr
    cfg.default_hooks.schedule.warm_heads = warm
    momentum.start = max(momentum.start, min(kept.model.momentum.start, 1 - 4 / iterations))
    return (
        f'settings that preserve the weights: learning rate {optim.optimizer.lr:g}, times '
        f'{optim.paramwise_cfg.layer_decay_rate} for each block further from the head; neck and head train alone for '
        f'the first {warm:.0%} of the steps; teacher momentum from {momentum.start:.4g}'
    )


def named_start(cfg: Config) -> Optional[str]:
    """Return the file that a pretraining config names as ``model.init_cfg.checkpoint`` or
    ``model.backbone.init_cfg.checkpoint``; of the rest, ``allow_missing`` and ``allow_unexpected`` are left to
    :func:`start_from`.

    Raises:
        ConfigError: another key beside them.
    """
    model = cfg.get('model') or {}
    if 'roi_head' in model or 'bbox_head' in model or 'backbone' not in model or 'neck' not in model:
        return None
    for path, owner in (('model', model), ('model.backbone', model['backbone'])):
        named = owner.get('init_cfg') if isinstance(owner, dict) else None
        if isinstance(named, dict) and named.get('checkpoint') and '://' not in str(named['checkpoint']):
            if named.get('type') in (None, 'VerifiedPretrained', 'Pretrained'):
                owner.pop('init_cfg')
                unknown = sorted(set(named) - {'type', 'checkpoint', *ALLOWED})
                if unknown:
                    raise ConfigError(
                        f'{path}.init_cfg.{unknown[0]} is read by nothing, as a pretraining finds the backbone in the '
                        'file by its names: remove it.'
                    )
                if set(named) & set(ALLOWED):
                    model['backbone']['init_cfg'] = {key: named[key] for key in ALLOWED if key in named}
                return str(named['checkpoint'])
    return None


def follow_named(cfg: Config) -> List[str]:
    """Have a detector that names a file as ``model.backbone.init_cfg.checkpoint`` read and normalise its images as the
    file's training did, and a linear probe normalise them; return lines for the log.

    Means other than ImageNet's, and a window or channels that the config sets, are someone's choice and stay.
    """
    model = cfg.get('model') or {}
    backbone = model.get('backbone')
    named = backbone.get('init_cfg') if isinstance(backbone, dict) else None
    detector = 'roi_head' in model or 'bbox_head' in model
    if not (detector or model.get('type') == 'ImageClassifier') or not isinstance(named, dict):
        return []
    file = named.get('checkpoint')
    if named.get('type') != 'VerifiedPretrained' or not file or not Path(file).exists():
        return []
    key, meta, lines = 'model.backbone.init_cfg.checkpoint', read_meta(file), []
    own = {name: list((model.get('data_preprocessor') or {}).get(name) or ()) for name in ('mean', 'std')}
    if all(own.values()) and {'mean', 'std'} <= set(meta) and not all(_near(own[n], meta[n]) for n in own):
        told = f'mean {_numbers(meta["mean"])} and std {_numbers(meta["std"])}'
        if _near(sorted(own['mean']), sorted(IMAGENET_MEAN)):
            set_normalisation(cfg, meta)
            lines.append(f'{key}: {told} from the file')
        else:
            lines.append(f'{key}: the file tells {told}; model.data_preprocessor has others, which are kept')
    reading = told_reading(meta) if detector else None
    if reading and not any(set(step) & {'channels', 'window', 'percentiles'} for step in loading_steps(cfg)):
        set_reading(cfg, reading)
        if cfg.get('train_dataloader'):  # a config may hold what is tested alone
            follow_channels(cfg)
        lines.append(f'{key}: {_told(reading)}')
    if not detector and meta.get('reading'):
        lines.append(
            f'mind: the pretraining of {file} read its images by {meta["reading"]}, and mmpretrain reads those of a '
            'probe as photographs of 8 bits: on other pixels than it was trained on, a backbone does worse'
        )
    return lines


def _near(first: Sequence[float], second: Sequence[float]) -> bool:
    return len(first) == len(second) and all(abs(a - b) < 0.05 for a, b in zip(first, second))


def _told(reading: Reading) -> str:
    options = ', '.join(f'{name}={value}' for name, value in reading.options.items())
    return f'its images are read as in the pretraining ({options})'


def _arch(backbone: dict) -> dict:
    arch = backbone.get('arch', 'base')
    if isinstance(arch, dict):
        return arch
    if arch not in VisionTransformer.arch_zoo:
        raise ConfigError(f'model.backbone.arch {arch!r} is none of {", ".join(sorted(VisionTransformer.arch_zoo))}.')
    return VisionTransformer.arch_zoo[arch]


def _check_size(shape: VitShape, own: dict, name: str) -> None:
    theirs, ours = (shape.width, shape.depth), (own['embed_dims'], own['num_layers'])
    if theirs == ours:
        return
    letter = {(384, 12): 'vits', (768, 12): 'vitb', (1024, 24): 'vitl'}.get(theirs)
    hint = (
        f'take a recipe of that size (*_{letter}_*)' if letter else 'set model.backbone.arch and model.neck.in_channels'
    )
    raise CheckpointError(
        f'{name} is a ViT of {theirs[0]} channels and {theirs[1]} blocks, and the backbone of the config has {ours[0]} '
        f'and {ours[1]}: {hint}.'
    )


def _scale_views(cfg: Config, patch: int) -> None:
    """Other patches, the same number of them in each view."""
    backbone = cfg.model.backbone
    old = backbone.get('patch_size', 16)
    backbone.patch_size = patch
    if 'img_size' in backbone:
        backbone.img_size = backbone.img_size // old * patch
    for step in cfg.train_dataloader.dataset.get('pipeline', ()):
        if 'patch_size' in step:
            step['patch_size'] = patch
        for view in step.get('views', ()):
            view['size'] = view['size'] // old * patch


def _set_patch(cfg: Config, shape: VitShape, init: Path) -> List[str]:
    """The file's patches, where the config says them, too; the views follow."""
    own, size = cfg.model.backbone.get('patch_size', 16), shape.patch_size
    if own != size:
        raise CheckpointError(
            f'{init} has patches of {size} pixels and the config {own}: to use those of the file, which changes the '
            f'size of every view, set --cfg-options model.backbone.patch_size={size}.'
        )
    lines = []
    for step in cfg.train_dataloader.dataset.get('pipeline', ()):
        if step.get('patch_size', size) == size:
            continue
        step['patch_size'] = size
        for view in step.get('views', ()):
            fitting = max(size, size * round(view['size'] / size))
            if fitting != view['size']:
                lines.append(
                    f'--init: {view["role"]} views of {fitting} pixels, not {view["size"]}: multiples of {size}'
                )
                view['size'] = fitting
    return lines


def _set_options(backbone: Any, shape: VitShape, vit: Source, meta: dict) -> List[str]:
    options = shape.backbone_options()
    options['norm_cfg'] = dict(type='LN', eps=meta.get('norm_eps', vit.norm_eps))
    if shape.patches is not None and meta.get('antialias', vit.antialias):
        options['antialias'] = True
    if meta.get('window_size') and 'window_size' not in backbone:
        options.update({name: meta[name] for name in ('window_size', 'global_every') if name in meta})
    if isinstance(backbone.get('rope'), dict) and 'rope' in options:
        options['rope'] = {**options['rope'], **backbone['rope']}  # augmentation as the config has it
    backbone.update(options)
    told = ', '.join(f'{name}={value}' for name, value in options.items() if name != 'norm_cfg')
    return [f'--init: backbone options from the file: {told or "none"}, norm eps {options["norm_cfg"]["eps"]:g}']


def _normalisation(cfg: Config, meta: dict) -> str:
    preprocessor = cfg.model.setdefault('data_preprocessor', dict(type='ViewPreprocessor'))
    if 'mean' in meta and 'std' in meta:
        preprocessor.update(mean=list(meta['mean']), std=list(meta['std']))
        return f'--init: mean {_numbers(meta["mean"])} and std {_numbers(meta["std"])} from the file'
    mean, std = preprocessor.get('mean', ()), preprocessor.get('std', ())
    return (
        "--init: the file does not tell its normalisation; the config's is taken (mean "
        f'{_numbers(mean) or "of ImageNet"}, std '
        f'{_numbers(std) or "of ImageNet"}), set model.data_preprocessor.mean and .std if it was another'
    )


def _numbers(values) -> str:
    return ', '.join(f'{float(value):g}' for value in values)
