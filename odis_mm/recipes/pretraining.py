"""A pretraining config for a folder of images."""

from pathlib import Path
from shlex import quote
from typing import Any, Dict, List, Optional, Tuple

import torch
from mmengine.config import Config
from mmpretrain.registry import TRANSFORMS

from ..config import apply_options, drop_variables, load_config
from ..datasets import ObjectDataset
from ..datasets.layout import annotated_parent, count_images, find_splits, held_out, image_folder
from ..datasets.reading import MEASURED, find_reading
from ..datasets.survey import HEADERS, Survey, spread, survey, turned, visibility
from ..utils.environment import cores
from ..utils.errors import ConfigError
from ..utils.files import PathLike
from ..utils.nested import dicts
from ..utils.noise import import_quietly, quiet_log
from ..utils.paths import PRETRAINING_STEPS, check_folder, check_steps, find_file
from ..utils.words import count
from .arguments import check_arguments
from .starting import keep_weights, start_from

METHODS = ('odis', 'gtsa', 'alfm', 'ibot')
"""Pretraining methods that have recipes for small data."""
TRIED = (200, 5000)  # images for which the small recipes are made
ENOUGH = 0.9  # share of images that should show their object in all global views
COVERS = (0.04, 0.02, 0.01, 0.005, 0.0)  # of min_cover; 0.04 is ODIS's
WITHOUT = 'none'
LARGE_WIDTH = 384  # ViT-S; weights so wide come from elsewhere


def pretraining_config(
    data: PathLike,
    *,
    boxes: Optional[PathLike] = None,
    images: Optional[PathLike] = None,
    method: Optional[str] = None,
    recipe: Optional[str] = None,
    init: Optional[PathLike] = None,
    steps: Optional[int] = None,
    size: Optional[int] = None,
    batch: Optional[int] = None,
    seed: int = 0,
    options: Optional[Dict[str, Any]] = None,
) -> Tuple[Config, Survey]:
    """Return the config of a pretraining on a folder, ready for ``apis.train``, and what the folder holds.

    What was chosen and why is its list ``notes``.

    Args:
        data: Folder of images, nested as they are, or a data set that :func:`~odis_mm.datasets.layout.find_splits`
            recognises.
        boxes: A json of objects, absolute or below ``data``; None: that of the training split, if there is one; 'none':
            no objects.
        images: Folder of the images that the annotations name, if it is not found near them.
        method: One of ``METHODS``; None: odis if there are objects, else gtsa.
        recipe: A shipped config or a path, in place of the choice by method and number of images; its views stay as
            they are.
        init: A checkpoint to start from, of any layout that transfer reads. The backbone takes its size and patches,
            the views keep their number of patches. A ViT of 384 channels or more comes from elsewhere: it is trained
            by settings that keep what it knows (see :func:`keep_weights`).
        steps: Length in iterations, of which recipes that accumulate gradients (``accumulative_counts``) take several
            for an optimizer step; None: the recipe's.
        size: Side of the global views in pixels; None: the recipe's.
        batch: Images per step and rank; None: the recipe's, or fewer if there are fewer images.
        seed: Of the views, the order of images and the weights.
        options: ``--cfg-options``, set last.

    Raises:
        CheckpointError: ``init`` cannot be used.
        ConfigError: an argument or an option that cannot be used.
        MissingFileError: no such folder or file.
    """
    if method is not None and method not in METHODS:
        raise ConfigError(f'there is no method {method!r}: choose one of {", ".join(METHODS)}.')
    check_arguments(batch, seed, options)
    import_quietly('mmpretrain.datasets')
    ann_file, folder, with_boxes, notes = _find_data(Path(data), boxes, images)
    with quiet_log():  # the run says it
        dataset = ObjectDataset(
            data_root='', ann_file=str(ann_file or ''), data_prefix=str(folder), with_masks=False, pipeline=[]
        )
    found = survey(dataset)
    with_boxes = with_boxes and found.objects > 0
    notes.append(f'data: {found.words()}')
    if found.images < TRIED[0]:
        notes.append(
            f'mind: the recipes were tried with {TRIED[0]} images and more; add images, annotated or not, before you '
            'add steps'
        )
    method = method or ('odis' if with_boxes else 'gtsa')
    with_boxes = with_boxes and (method == 'odis' or recipe is not None)
    if ann_file is not None:
        there = count_images(folder)
        notes[0] += f', {found.images} of {there} in the folder,' if found.images < there else ''
        notes[0] += ' with their boxes, not their classes' if with_boxes else ' without their boxes'
    if with_boxes:
        notes += turned([dataset.get_data_info(i) for i in spread(len(dataset), HEADERS).tolist()])
    small = found.images <= TRIED[1] or not torch.cuda.is_available()
    given = recipe
    if recipe is None:
        recipe = f'{method}_small' if small else {'odis': 'odis_vits_coco_1gpu24g'}.get(method, f'{method}_vits_coco')
    why = (
        f'{found.images} images'
        if found.images <= TRIED[1]
        else ('no GPU' if small else f'{found.images} images and a GPU')
    )
    if method == 'odis' and not with_boxes:
        notes.append(
            'mind: ODIS has no objects here, so that each whole image counts as one: find some by odis-mm find-objects '
            '(then --boxes FILE), or take --method gtsa'
        )
    notes.insert(0, f'recipe: {recipe} ({"with objects" if with_boxes else "without objects"}, {why})')
    cfg = load_config(recipe)
    if init is not None:
        start_from(cfg, init, adapt=True)  # apis.train says what it took

    loader = cfg.train_dataloader
    loader.dataset.update(
        type='ObjectDataset',
        data_root='',
        ann_file=str(ann_file or ''),
        data_prefix=str(folder),
        seed=seed,
        with_masks=False,
    )
    if batch is not None and batch > found.images:
        notes.append(f'batch: {found.images} in place of {batch}, as there are no more images')
    loader.batch_size = min(batch or loader.batch_size, found.images)
    loader.num_workers = _workers()
    loader.persistent_workers = loader.num_workers > 0
    cfg.setdefault('randomness', {}).update(seed=seed)
    _set_views(cfg, size)
    _fit_matches(cfg)
    notes += _set_reading(cfg, dataset)
    if not with_boxes and _view_step(cfg)['type'] == 'SampleViews':  # the file that lists the images may have boxes
        _view_step(cfg)['target_rule'] = 'whole_image'
    if with_boxes and _may_fit(given, cfg):
        notes += _fit_views(cfg, dataset)
    iterations = max(1, found.images // loader.batch_size)
    notes.append(_set_length(cfg, steps, iterations))
    arch = cfg.model.backbone.get('arch')
    decay = (cfg.optim_wrapper.get('paramwise_cfg') or {}).get('layer_decay_rate')  # of a recipe that keeps them itself
    if init is not None and decay is None and isinstance(arch, dict) and arch['embed_dims'] >= LARGE_WIDTH:
        notes.append(keep_weights(cfg, cfg.train_cfg.max_iters))
    cfg.notes = notes
    apply_options(cfg, options or {})
    drop_variables(cfg, options or {})
    accumulated = cfg.optim_wrapper.get('accumulative_counts', 1)
    if accumulated > 1:
        total = cfg.train_cfg.max_iters
        cfg.notes = [
            *cfg.notes,
            f'accumulation: {accumulated} iterations make an optimizer step (optim_wrapper.accumulative_counts), so '
            f'the {total} of the run make {count(-(-total // accumulated), "optimizer step")}',
        ]
    return cfg, found


def _may_fit(given: Optional[str], cfg: Config) -> bool:
    """Whether views are chosen from the data: those of the small recipes are, of views drawn around an object."""
    return (given is None or Path(given).stem.endswith('_small')) and _view_step(cfg).get('object_aware', False)


def _find_data(
    data: Path, boxes: Optional[PathLike], images: Optional[PathLike]
) -> Tuple[Optional[Path], Path, bool, List[str]]:
    """Annotation file, image folder, whether its boxes are used, and what to tell about it."""
    check_folder(data)
    data = data.resolve()
    folder = None if images is None else Path(images).resolve()
    if folder is not None:
        check_folder(folder)
    if boxes is not None and str(boxes) != WITHOUT:
        path = find_file(boxes, data).resolve()
        coco = '"images"' in path.read_text('utf-8-sig', errors='replace')
        found = folder or (image_folder(path, data, 'train') if coco else data)
        return path, found, True, [f'boxes: {path}; the images that it lists are used']
    split = find_splits(data, ('train',), folder).get('train')
    if split is None:
        notes = ['annotations: none used; all images of the folder are used, without objects']
        judged = held_out(folder or data)
        if judged:
            parent = annotated_parent(folder or data)
            notes.append(
                f'images of {" and ".join(judged)} are among them: a detector that is judged on these images has seen '
                'them in pretraining; to avoid that, '
                + (
                    f'take the training images alone, by --data {quote(str(parent))} --boxes none'
                    if parent
                    else 'name a folder that holds the training images alone'
                )
            )
        return None, folder or data, False, notes
    return (
        split.ann_file,
        split.images,
        boxes is None,
        [f'annotations: {split.ann_file}; the images that it lists are used'],
    )


def _workers() -> int:
    """Processes that prepare images: on CPUs they would take the cores that train."""
    return min(8, cores()) if torch.cuda.is_available() else 0


def _set_reading(cfg: Config, dataset: ObjectDataset) -> List[str]:
    """Channels and values of images that are no usual photographs; the line that tells of them."""
    reading = find_reading([dataset.get_data_info(i)['img_path'] for i in spread(len(dataset), MEASURED).tolist()])
    load = next((step for step in cfg.train_dataloader.dataset.pipeline if step['type'] == 'LoadObjectImage'), None)
    if load is None or not reading.options:
        return []
    load.update(reading.options)
    if reading.channels != 3:
        cfg.model.setdefault('data_preprocessor', dict(type='ViewPreprocessor')).update(
            mean=reading.mean, std=reading.std
        )
    return [reading.told]


def _view_step(cfg: Config):
    return next(
        step for step in cfg.train_dataloader.dataset.pipeline if step['type'] in ('SampleViews', 'SamplePairViews')
    )


def _set_views(cfg: Config, size: Optional[int]) -> None:
    """Other sizes of the views: the locals keep their ratio to the globals, all stay multiples of the patch size."""
    if size is None:
        return
    step, patch = _view_step(cfg), int(cfg.model.backbone.get('patch_size', 16))
    if size % patch or size < patch:
        raise ConfigError(
            f'views of {size} pixels cannot be cut into patches of {patch}: choose {patch}, {2 * patch}, ...'
        )
    old = step['views'][0]['size']
    for group in step['views']:
        group['size'] = max(patch, round(group['size'] * size / old / patch) * patch)
    if 'img_size' in cfg.model.backbone:
        cfg.model.backbone.img_size = size


def _fit_matches(cfg: Config) -> None:
    """Half the cells of a view, as in GTSA's paper, where the recipe asks for more matches than the view has cells."""
    head = cfg.model.get('head') or {}
    if 'num_matches' in head:
        patch, asked = int(cfg.model.backbone.get('patch_size', 16)), tuple(head['num_matches'])
        cells = [(group['size'] // patch) ** 2 for group in _view_step(cfg)['views']]
        fitting = tuple(k if k <= n else max(n // 2, 1) for k, n in zip(asked, cells))
        head['num_matches'] = fitting + asked[len(fitting) :]


def _fit_views(cfg: Config, dataset: ObjectDataset) -> List[str]:
    """Lower ``min_cover``, then the crops' scale, until most images show their object in all global views."""
    step = _view_step(cfg)
    asked = step.get('min_cover', COVERS[0])
    first = max(asked) if isinstance(asked, (list, tuple)) else asked
    low, high = next(group['scale'] for group in step['views'] if group['role'] == 'global')
    best: Tuple[float, float, Tuple[float, float]] = (-1.0, first, (low, high))
    for scale in ((low, high), (low / 2, high / 2), (low / 4, high / 4)):
        for cover in [first, *(c for c in COVERS if c < first)]:
            step['min_cover'] = cover
            for group in step['views']:
                if group['role'] == 'global':
                    group['scale'] = scale
            share = visibility(dataset, TRANSFORMS.build(dict(step))).share
            if share > best[0]:
                best = (share, cover, scale)
            if share >= ENOUGH:
                break
        if best[0] >= ENOUGH:
            break
    share, cover, scale = best
    step['min_cover'] = cover
    for group in step['views']:
        if group['role'] == 'global':
            group['scale'] = scale
    return [
        f'views: crops of {scale[0]:.0%} to {scale[1]:.0%} of the image, the object covers at least {cover:.1%} of '
        f'the first one; {share:.0%} of the images show their object in all global views'
    ]


def _set_length(cfg: Config, steps: Optional[int], iterations: int) -> str:
    """Length, warm-up and checkpoints, for ``iterations`` steps per epoch; the line that tells of it."""
    told = cfg.train_cfg.get('max_iters') or cfg.train_cfg.get('max_epochs', 1) * iterations
    total = told if steps is None else steps
    check_steps(total, PRETRAINING_STEPS)
    cfg.train_cfg = dict(type='ResumableEpochLoop', max_iters=total)
    _scale_epochs(cfg, total / iterations)
    warmup = max(2, round(total / 10))  # mmengine's LinearLR of one step never leaves its start
    ends = [part['eta_min'] for part in dicts(cfg.get('param_scheduler')) if 'eta_min' in part]
    cfg.param_scheduler = [
        dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=warmup),
        dict(type='CosineAnnealingLR', eta_min=min(ends, default=1e-6), by_epoch=False, begin=warmup, end=total),
    ]
    epochs = -(-total // iterations)
    interval = max(1, epochs // 4)
    cfg.default_hooks.checkpoint.update(interval=interval, max_keep_ckpts=2)
    health = cfg.default_hooks.get('health')
    if health:  # a fault is told after three measurements: within a short run, too
        health.interval = min(health.get('interval', 50), max(10, total // 6))
    if total < iterations:
        parts = f'of the {iterations} of an epoch'
    else:
        parts = f'{count(epochs, "epoch")} of {iterations}'
        parts += f', the last of {total % iterations}' if total % iterations else ''
    return f'length: {total} iterations, {parts}; warm-up {warmup} iterations; a checkpoint every ' + (
        'epoch' if interval == 1 else f'{interval} epochs'
    )


def _scale_epochs(cfg: Config, epochs: float) -> None:
    """Keep what recipes count in epochs to a share of the run: an epoch may be three steps, or the run shorter than a
    warm-up."""
    temperature, head = cfg.model.head.get('teacher_temp'), cfg.model.head
    if isinstance(temperature, dict):
        temperature['warmup_epochs'] = min(
            temperature.get('warmup_epochs', 0), 0.3 * epochs
        )  # iBOT: 30 of 100 epochs and more
    if 'correspondence_epoch' in head:
        head['correspondence_epoch'] = 0.11 * epochs  # release: from epoch 11 of 100 on, counted from 0
    schedule = cfg.default_hooks.get('schedule')
    if schedule and schedule.get('freeze_prototypes_epochs'):
        schedule['freeze_prototypes_epochs'] = min(schedule['freeze_prototypes_epochs'], 0.05 * epochs)
