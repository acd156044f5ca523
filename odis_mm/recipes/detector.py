"""Configs made for a data set: what a person would write by hand after looking at the annotations."""

import functools
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, FrozenSet, List, Optional, Sequence, Tuple

import numpy as np
import torch
from mmengine.config import Config

from ..config import apply_options, drop_variables, load_config
from ..datasets.annotations import coco_table
from ..datasets.image_io import has_extent
from ..datasets.layout import Split, categories, check_names, read_coco
from ..datasets.reading import Reading, find_reading
from ..datasets.segmentation import usable
from ..datasets.survey import turned_of
from ..datasets.values import identity
from ..transfer import VitShape, read_checkpoint, read_meta, read_vit, told_grid
from ..utils.errors import ConfigError
from ..utils.files import PathLike
from ..utils.nested import dicts
from ..utils.paths import DETECTOR_SIZE, DETECTOR_STEPS, check_steps, detector_name
from .arguments import check_arguments

ALLOWED = ('allow_missing', 'allow_unexpected')  # of ``VerifiedPretrained``
BATCH = 8  # images per step of the small detectors
SMALL_DETECTORS = ('mask-rcnn_small', 'faster-rcnn_small')
"""Detectors for small data, whose size of images follows from the objects."""
SHORT = 128  # pixels: short side of the images of these
SMALLEST = 8  # pixels: two cells of their finest level; of smaller objects they find few
LONGER = 5 / 3  # the long side at most, in short sides: a longer image gets less than its short side
LARGEST = dict(cpu=256, cuda=640)  # short side that is set unasked; the time of a step grows with its square


@dataclass(frozen=True)
class Content:
    """What the annotations of a split hold, as far as a detector's config depends on it.

    Attributes:
        classes: Names of the categories that have an object, in the file's order, which is that of mmdet's labels.
        ids: Of these categories in the file.
        masks: Whether every annotation, crowd regions among them, has a mask that Mask R-CNN takes.
        images: Number of images with an object, on which a detector trains.
        bare: Number of images without one, which it leaves out.
        boxes: float [n, 4], x, y, width, height in pixels, crowd regions left out.
        sides: float [n, 2], the short and the long side of each box's image in pixels; 0: not told.
        paths: Of all images.
    """

    classes: Tuple[str, ...]
    ids: Tuple[Any, ...]
    masks: bool
    images: int
    bare: int
    boxes: np.ndarray
    sides: np.ndarray
    paths: FrozenSet[str]


def read_content(split: Split) -> Content:
    """Read the annotations of a split.

    Raises:
        ConfigError: two categories of one name, or no object to learn from.
        AnnotationError: an image, annotation or category is not understood.
    """
    content = read_coco(split.ann_file)
    if not content.get('annotations'):
        raise ConfigError(f'{split.ann_file} has no object with a box, which a detector needs: name other annotations.')
    table = coco_table(content, split.ann_file)
    check_names(content, split.ann_file)
    used = {identity(category['id']) for category in categories(content)}
    kept = [category for category in content.get('categories') or () if identity(category['id']) in used]
    classes = [str(category['name']) for category in kept]
    if len(set(classes)) < len(classes):
        twice = next(name for name in classes if classes.count(name) > 1)
        raise ConfigError(f'{split.ann_file}: two categories are named {twice!r}: merge or rename them.')
    good = ~table['crowd'] & (table['owner'] >= 0) & has_extent(table['boxes'])
    if not good.any():
        raise ConfigError(
            f'{split.ann_file} has no object with a box of a pixel or more in an image that it lists: boxes are '
            '[x, y, width, height] in pixels, not shares of the image; fix them, or name other annotations.'
        )
    images = len(np.unique(table['owner'][(table['owner'] >= 0) & (table['labels'] >= 0)]))
    boxes, sides = table['boxes'][good], table['sizes'][table['owner'][good]]
    return Content(
        tuple(classes),
        tuple(category['id'] for category in kept),
        all(usable(annotation.get('segmentation')) for annotation in content['annotations']),
        images,
        len(content['images']) - images,
        np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1),
        np.sort(np.where(np.isfinite(sides).all(1, keepdims=True), sides, 0), 1),
        frozenset(_paths(content, split)),
    )


def _paths(content: dict, split: Split) -> List[str]:
    """Of the files themselves, which links of two splits may share."""
    names = [image.get('file_name') for image in content['images'] if isinstance(image, dict)]
    folder_of, found = functools.cache(os.path.realpath), []
    for path in (Path(split.images, name) for name in names if isinstance(name, str)):
        place = os.path.join(folder_of(path.parent), path.name)
        found.append(os.path.realpath(place) if os.path.islink(place) else place)
    return found


def _learned(content: Content, val: Split) -> List[str]:
    """A line if images of the validation split are trained on."""
    paths = _paths(read_coco(val.ann_file), val)
    both = sum(path in content.paths for path in paths)
    if not both:
        return []
    return [
        f'mind: {both} of the {len(paths)} validation images are among the training images: AP is higher than '
        'on images that no training has seen'
    ]


def detector_config(
    train: Split,
    val: Split,
    test: Optional[Split] = None,
    *,
    detector: Optional[str] = None,
    init: Optional[PathLike] = None,
    size: Optional[int] = None,
    iterations: int = 300,
    batch: Optional[int] = None,
    seed: int = 0,
    evaluations: int = 1,
    options: Optional[Dict[str, Any]] = None,
) -> Config:
    """Return the config of a detector for a data set, ready for ``apis.train``.

    Classes, paths, anchors, backbone, and a schedule that ends with the run follow from the data, the file and the
    length.

    Args:
        detector: A shipped config or a path; None: ``mask-rcnn_small`` if every object has a segmentation, else
            ``faster-rcnn_small``.
        init: A checkpoint whose backbone the detector starts from and whose shape its backbone takes; None: the
            config's own shape, random weights.
        size: Shortest side of the images in pixels, for the small configs; None: :func:`fitting_size`, or that of
            another config.
        iterations: Length, in steps of ``batch`` images (None: the config's own).
        evaluations: How many times the val split is evaluated, evenly spread, the last time at the end.
        options: ``--cfg-options``, set last.

    Raises:
        ConfigError: annotations, length or an option that cannot be used.
        CheckpointError: ``init`` cannot be read.
    """
    content = read_content(train)
    check_arguments(batch, seed, options)
    if size is not None and size < DETECTOR_SIZE:
        raise ConfigError(f'size must be {DETECTOR_SIZE} pixels or more, got {size}.')
    check_steps(iterations, DETECTOR_STEPS)
    name = detector_name(detector or ('mask-rcnn' if content.masks else 'faster-rcnn'))
    cfg = load_config(name)
    if cfg.get('default_scope') != 'mmdet' or 'val_dataloader' not in cfg:
        raise ConfigError(f'{name} is not the config of a detector: take mask-rcnn, faster-rcnn, or one of mmdet.')
    for split in (val, test):
        if split is not None:
            _check_classes(content.classes, split, train)
    _set_data(cfg, train, val, test or val, content)
    listed = read_coco(train.ann_file)['images']
    cfg.notes = [*cfg.get('notes', []), *_learned(content, val), *turned_of(listed, train.images)]
    meta = {} if init is None else read_meta(init)
    set_reading(cfg, _reading(meta, train))
    _set_length(cfg, iterations, batch, evaluations)
    if size is None and str(name) in SMALL_DETECTORS:
        size = fitting_size(content)
        if size != SHORT:
            _set_size(cfg, size)
            cfg.notes = [*cfg.get('notes', []), _told_size(content, size)]
    elif size is not None:
        _set_size(cfg, size)
    if init is not None:
        set_backbone(cfg, init)
        cfg.notes = [*cfg.get('notes', []), *_seen_before(meta, val)]
    elif not (cfg.model.backbone.get('init_cfg') or {}).get('checkpoint') and not any(
        'init_cfg' in name for name in options or ()
    ):  # random weights are not worth freezing, nor are the statistics of their norms
        for name, value in (('frozen_stages', -1), ('norm_eval', False)):
            if name in cfg.model.backbone:
                cfg.model.backbone[name] = value
    if 'ViTSimplePyramid' in str(cfg.model.get('neck')):
        short, long = _image_sides(cfg)
        _set_pyramid(cfg, content, short, long)
        generator = cfg.model.rpn_head.anchor_generator
        sizes = [scale * stride for stride in generator.strides for scale in generator.scales]
        cfg.notes = [
            *cfg.get('notes', []),
            f'images: short side {short} px (--size); anchors, by the objects: {min(sizes):.0f} to {max(sizes):.0f} px',
        ]
    cfg.setdefault('randomness', dict())
    cfg.randomness.update(seed=seed)
    apply_options(cfg, options or {})
    drop_variables(cfg, options or {})
    return cfg


def _check_classes(classes: Sequence[str], split: Split, train: Split) -> None:
    """mmdet numbers classes in the order of each file: another order would give every object another object's name."""
    names = [str(category.get('name')) for category in read_coco(split.ann_file).get('categories') or ()]
    shared = [name for name in names if name in classes]
    if not shared:
        raise ConfigError(
            f'{split.ann_file} and {train.ann_file} have no class in common: {names} and {list(classes)}.'
        )
    if shared != list(classes):
        raise ConfigError(
            f'{split.ann_file} lists the classes {shared} and {train.ann_file} {list(classes)}: both must list the '
            'same in the same order, as labels are numbered by it.'
        )


def _seen_before(meta: dict, val: Split) -> List[str]:
    """A line if the pretraining took every image of the folder in which the images of the validation split lie."""
    folder = meta.get('every_image_of')
    if not folder:
        return []
    images = [Path(val.images, image['file_name']) for image in read_coco(val.ann_file)['images']]
    # links in the folder lead out of it, links to it into it
    seen = sum(
        image.absolute().is_relative_to(folder) or image.resolve().is_relative_to(Path(folder).resolve())
        for image in images
    )
    if not seen:
        return []
    return [
        f'mind: the pretraining used every image of {folder}, {seen} of the {len(images)} validation images among '
        'them: on images that no training has seen, AP may be lower'
    ]


def _set_data(cfg: Config, train: Split, val: Split, test: Split, content: Content) -> None:
    for key, split in (('train', train), ('val', val), ('test', test)):
        dataset = cfg[f'{key}_dataloader'].dataset
        dataset.update(
            type='CocoDataset',
            data_root='',
            ann_file=str(Path(split.ann_file).resolve()),
            data_prefix=dict(img=str(Path(split.images).resolve()) + '/'),
            metainfo=dict(classes=content.classes, category_ids=content.ids),  # the ids are for predictions
        )
        if key == 'train':
            dataset.type = 'DetectionDataset'
        else:
            cfg[f'{key}_evaluator'].ann_file = dataset.ann_file
    cfg.default_hooks.setdefault('bad_images', dict(type='mmpretrain.BadImageHook'))
    for head in dicts(cfg.model.roi_head) if 'roi_head' in cfg.model else [cfg.model.bbox_head]:
        if 'num_classes' in head:
            head['num_classes'] = len(content.classes)


def _reading(meta: dict, train: Split) -> Reading:
    """As the pretraining read its images, if the file tells; else as a look at the images says."""
    return told_reading(meta) or find_reading(
        [Path(train.images, image['file_name']) for image in read_coco(train.ann_file)['images']]
    )


def told_reading(meta: dict) -> Optional[Reading]:
    """Return how the training of a file read its images, by its meta; None: as usual photographs."""
    if 'reading' not in meta:
        return None
    told = 'images: read as in the pretraining'
    return Reading(**meta['reading'], mean=meta.get('mean'), std=meta.get('std'), told=told)


def loading_steps(cfg: Config) -> List[dict]:
    """Return the steps of a detector's pipelines that read its images."""
    loaders = [cfg.get(f'{key}_dataloader') for key in ('train', 'val', 'test')]
    kinds = ('LoadImageFromFile', 'LoadDetectionImage')
    return [step for step in dicts(loaders) if step.get('type') in kinds]


def set_reading(cfg: Config, reading: Reading) -> None:
    """Every image is read as in pretraining; model and preprocessor follow the number of channels."""
    for step in loading_steps(cfg):
        step.clear()
        step.update(type='LoadDetectionImage', **reading.options)
    if reading.channels != 3:
        cfg.model.data_preprocessor.update(mean=reading.mean, std=reading.std)
        cfg.model.backbone.in_channels = reading.channels
    if reading.told:
        cfg.notes = [*cfg.get('notes', []), reading.told]


def _set_length(cfg: Config, iterations: int, batch: Optional[int], evaluations: int) -> None:
    warmup = min(max(iterations // 4, 1), int(cfg.param_scheduler[0].get('end', 50)))
    cfg.train_cfg = dict(
        type='IterBasedTrainLoop', max_iters=iterations, val_interval=math.ceil(iterations / max(evaluations, 1))
    )
    cfg.param_scheduler = [
        dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=warmup),
        dict(
            type='CosineAnnealingLR',
            by_epoch=False,
            begin=warmup,
            end=iterations,
            T_max=iterations - warmup,
            eta_min_ratio=0.01,
        ),
    ]
    cfg.log_processor = dict(type='mmpretrain.RunLogProcessor', window_size=20, by_epoch=False)
    # a power cut costs a quarter of the run at most
    cfg.default_hooks.checkpoint.update(by_epoch=False, interval=math.ceil(iterations / 4), max_keep_ckpts=1)
    cfg.default_hooks.logger.interval = min(cfg.default_hooks.logger.get('interval', 20), max(iterations // 10, 1))
    loader = cfg.train_dataloader
    loader.sampler = dict(type='InfiniteSampler', shuffle=True)
    if batch is not None:
        loader.batch_size = batch


def _set_size(cfg: Config, size: int) -> None:
    scale = (round(size * LONGER), size)
    for key in ('train', 'val', 'test'):
        steps = [step for step in cfg[f'{key}_dataloader'].dataset.pipeline if step['type'] == 'Resize']
        if not steps:
            raise ConfigError(
                f'{cfg.filename} has its own rule for the size of images, so size={size} cannot be set: leave it out, '
                'or take mask-rcnn_small or faster-rcnn_small.'
            )
        for step in steps:
            step['scale'] = scale
    if 'img_size' in cfg.model.backbone:  # a ViT's grid of positions
        cfg.model.backbone.img_size = size


def fitting_size(content: Content) -> int:
    """Return the short side of the images, in pixels, for a small detector: its own, or a larger one, as far as a step
    does not take too long, where more than a tenth of the objects would have sides below ``SMALLEST``; its own where
    the annotations do not tell the sizes of images."""
    if not (content.sides > 0).any():
        return SHORT
    least = np.percentile(_sides(content, SHORT), 10)
    wanted = 32 * math.ceil(SHORT * SMALLEST / max(least, 1e-3) / 32)
    return min(max(wanted, SHORT), LARGEST['cuda' if torch.cuda.is_available() else 'cpu'])


def _told_size(content: Content, size: int) -> str:
    share = {short: np.mean(_sides(content, short) < SMALLEST) for short in (SHORT, size)}
    line = f'size: {share[SHORT]:.0%} of the objects are below {SMALLEST} px at a short side of {SHORT} px'
    if share[size] > 0.1:
        return f'{line}, and {share[size]:.0%} at {size} px: a larger --size finds more of them, and takes longer'
    return f'{line}, so images have {size} px'


def _sides(content: Content, short: int) -> np.ndarray:
    """Sides (square roots of areas) of the objects at a short side of the images."""
    width, height, zoom = _extents(content, short)
    return np.sqrt(width * height) * zoom


def _extents(content: Content, short: int, long: Optional[int] = None) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Width and height of the objects in the files, and how much larger they are at a short side of the images, of
    which none has more than a long side; without sizes of images in the annotations: 1."""
    known = content.sides[:, 0] > 0
    boxes = content.boxes[known] if known.any() else content.boxes
    zoom = ((short, long or short * LONGER) / content.sides[known]).min(1) if known.any() else np.ones(len(boxes))
    width, height = (np.maximum(boxes[:, i], 1e-3) for i in (2, 3))
    return width, height, zoom


def _image_sides(cfg: Config) -> Tuple[int, int]:
    steps = [step for step in cfg.test_dataloader.dataset.pipeline if step['type'] == 'Resize']
    return min(steps[0]['scale']), max(steps[0]['scale'])


def backbone_settings(init: PathLike, allow_unexpected: Sequence[str] = ()) -> Dict[str, Any]:
    """Return the arguments of a backbone of the shape of a checkpoint's ViT: ``ObjectViT`` where a stock ViT has no
    place for it; ``allow_unexpected`` as in :func:`read_vit`.

    Raises:
        CheckpointError: it cannot be read, or holds no plain ViT.
    """
    meta = read_meta(init)
    grid = told_grid(meta)
    told = dict(source_grid=grid, heads=meta.get('num_heads'), allow_unexpected=allow_unexpected)
    vit = read_vit(read_checkpoint(init), str(init), **told)
    shape = VitShape.of(vit.state)
    rows, columns = shape.grid(grid)
    options = shape.backbone_options()
    if meta.get('window_size') and shape.cls_token:
        options.update({name: meta[name] for name in ('window_size', 'global_every') if name in meta})
    settings: Dict[str, Any] = dict(
        arch=dict(
            embed_dims=shape.width,
            num_layers=shape.depth,
            num_heads=shape.heads(str(init), meta.get('num_heads') or vit.heads),
            feedforward_channels=shape.mlp,
        ),
        patch_size=shape.patch_size,
        img_size=(rows * shape.patch_size, columns * shape.patch_size),
        norm_cfg=dict(type='LN', eps=meta.get('norm_eps', vit.norm_eps)),
        **options,
    )
    if shape.patches is not None and shape.cls_token and meta.get('antialias', vit.antialias):
        settings['antialias'] = True
    if {'num_registers', 'rope', 'swiglu', 'window_size', 'antialias'} & set(settings):
        return dict(type='mmpretrain.ObjectViT', **settings)
    return dict(settings, with_cls_token=shape.cls_token)


def set_normalisation(cfg: Config, meta: dict) -> None:
    """Take mean and std, in RGB, from the meta of a file that tells them; mmdet's images are BGR."""
    if not {'mean', 'std'} <= set(meta) or 'data_preprocessor' not in cfg.model:
        return
    preprocessor = cfg.model.data_preprocessor
    preprocessor.update(mean=list(meta['mean']), std=list(meta['std']))
    rgb = any(step.get('channel_order') == 'rgb' for step in dicts(cfg.get('train_dataloader')))
    if len(meta['mean']) == 3 and not rgb and 'to_rgb' not in preprocessor:  # mmpretrain's, which says it itself
        preprocessor.pop('rgb_to_bgr', None)
        preprocessor.bgr_to_rgb = True


def verified(backbone: dict, init: str) -> dict:
    """Return the ``init_cfg`` of a backbone that starts from a file; what its present one lets be missing or left over
    stays so."""
    present = backbone.get('init_cfg')
    kept = {key: list(present[key]) for key in ALLOWED if present.get(key)} if isinstance(present, dict) else {}
    return dict(type='VerifiedPretrained', checkpoint=init, **kept)


def set_backbone(cfg: Config, init: PathLike) -> None:
    """Have a detector start from a file, its backbone of the file's shape."""
    backbone = cfg.model.backbone
    init = str(Path(init).resolve())
    meta = read_meta(init)
    set_normalisation(cfg, meta)
    if not backbone.type.endswith(('VisionTransformer', 'ObjectViT')):
        backbone.init_cfg = verified(backbone, init)
        return
    init_cfg = verified(backbone, init)
    settings = backbone_settings(init, init_cfg.get('allow_unexpected', ()))
    # positions are resampled to the config's own grid, but for a finer one, which larger images have use for
    rows, columns = settings.pop('img_size')
    if 'rope' not in settings and rows == columns > np.max(backbone.get('img_size', 224)):
        backbone.img_size = rows
    depth, width = settings['arch']['num_layers'], settings['arch']['embed_dims']
    backbone.pop('arch')
    _scale_strides(cfg, settings['patch_size'] / backbone.get('patch_size', 16))
    for name in ('window_size', 'global_every') if 'window_size' in backbone else ():  # the config's own
        settings.pop(name, None)
    backbone.update(settings)
    taps = len(backbone.out_indices)
    backbone.out_indices = [depth - 1] if taps == 1 else [round(depth * f) - 1 for f in (1 / 3, 1 / 2, 2 / 3, 1)]
    backbone.init_cfg = init_cfg
    necks = cfg.model.neck if isinstance(cfg.model.neck, (list, tuple)) else [cfg.model.neck]
    for neck in necks:
        neck['in_channels'] = (
            [width] * len(neck['in_channels']) if isinstance(neck['in_channels'], (list, tuple)) else width
        )


def _scale_strides(cfg: Config, factor: float) -> None:
    """Strides of anchors and RoIs, and padding, where patches are larger by a factor; anchors keep their pixels."""

    def scaled(value: float, by: float = factor) -> float:
        return int(value * by) if value * by == int(value * by) else value * by

    if factor == 1:
        return
    for part in dicts(cfg.model):
        if str(part.get('type')).endswith('AnchorGenerator'):
            part['strides'] = [scaled(stride) for stride in part['strides']]
            if part.get('scales'):
                part['scales'] = [scaled(scale, 1 / factor) for scale in part['scales']]
        if 'featmap_strides' in part:
            part['featmap_strides'] = [scaled(stride) for stride in part['featmap_strides']]
        if 'pad_size_divisor' in part:
            part['pad_size_divisor'] = math.ceil(scaled(part['pad_size_divisor']))


def _set_pyramid(cfg: Config, content: Content, short: int, long: int) -> None:
    """Levels for the patch size, and anchors for the sizes of the objects."""
    patch, neck = int(cfg.model.backbone.patch_size), cfg.model.neck
    scales = (2, 1, 0.5) if patch <= 8 else (4, 2, 1, 0.5)
    strides = [patch / scale for scale in scales]
    strides = [int(s) if s == int(s) else s for s in strides]
    neck.update(scales=scales, extra_levels=0)
    cfg.model.backbone.img_size = math.ceil(cfg.model.backbone.img_size / patch) * patch
    cfg.model.data_preprocessor.pad_size_divisor = 2 * patch
    cfg.model.rpn_head.anchor_generator.update(strides=strides, **anchors(content, short, strides, long))
    for key in ('bbox_roi_extractor', 'mask_roi_extractor'):
        if cfg.model.roi_head.get(key):
            cfg.model.roi_head[key].featmap_strides = strides


def anchors(
    content: Content, short: int, strides: Sequence[float], long: Optional[int] = None
) -> Dict[str, List[float]]:
    """Return scales and ratios of anchors that meet the objects at a short side of ``short`` pixels, and a long one of
    ``long`` (None: ``LONGER`` times as many) at most.

    Two scales half an octave apart on every level, as in ``mask-rcnn_demo``, reach from 4 times the first stride to 5.6
    times the last. Where 5 % of the objects are smaller than the first, both are lowered (more of them would double the
    detector's work); where 5 % are larger than the last, larger ones are added. A ratio of 1 : 3 to either side of
    2 : 3 and 3 : 2 is added where 5 % of the objects are that long.
    """
    width, height, zoom = _extents(content, short, long)
    sides = np.sqrt(width * height) * zoom
    low, high = np.percentile(sides, (5, 95))
    scales = [4, 5.6]
    while low < scales[0] * strides[0] / 2**0.5 and scales[0] > 1:
        scales = [scales[0] / 2**0.5, scales[0]]
    while high > scales[-1] * strides[-1] * 2**0.5 and scales[-1] < 32:
        scales = scales + [scales[-1] * 2**0.5, scales[-1] * 2]
    narrow, wide = np.percentile(height / width, (5, 95))
    ratios = [0.67, 1.5]
    if narrow < 0.45:
        ratios = [0.33, *ratios]
    if wide > 2.2:
        ratios = [*ratios, 3.0]
    return dict(scales=[round(float(s), 2) for s in scales], ratios=ratios)
