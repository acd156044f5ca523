"""Pretraining on a folder of images."""

import logging
import re
import tempfile
from pathlib import Path
from typing import Any, Dict, Optional, Tuple, Union

from mmengine.config import Config
from mmengine.logging import print_log

from .. import apis
from ..config import MADE
from ..datasets.layout import count_images, find_splits, read_coco
from ..objects.annotations import imported_splits
from ..objects.formats import UnrecognisedError
from ..recipes.pretraining import WITHOUT, pretraining_config
from ..utils.errors import AnnotationError, ConfigError, StageError
from ..utils.files import PathLike
from ..utils.origin import CONFIGS, check_method, resumed_start
from ..utils.paths import check_checkpoint, check_data, check_resumable, check_unused, default_work_dir
from .logs import logging_at, tell

PROBE_STEPS = 8


def pretrain(
    data: PathLike,
    *,
    boxes: Optional[PathLike] = None,
    images: Optional[PathLike] = None,
    method: Optional[str] = None,
    init: Optional[PathLike] = None,
    steps: Optional[int] = None,
    hours: Optional[float] = None,
    size: Optional[int] = None,
    batch: Optional[int] = None,
    work_dir: Optional[PathLike] = None,
    resume: bool = False,
    seed: int = 0,
    amp: Union[str, bool, None] = None,
    quiet: bool = False,
    options: Optional[Dict[str, Any]] = None,
) -> Path:
    """Pretrain a backbone on a folder of images and return the path of its export, the file that detectors load.

    Recipe, views, batch and length follow from what the folder holds; the config that was used is written to
    ``work_dir``, to be changed and trained again with ``odis-mm train``.

    Args:
        data, boxes, images, method, init, steps, size, batch, seed, options: See
            :func:`~odis_mm.recipes.pretraining.pretraining_config`. Annotations that :func:`~odis_mm.objects.
            load_annotations` reads (YOLO, Pascal VOC, ...) are found, too.
        hours: Length as time in place of ``steps``: the speed is measured over a few steps first.
        work_dir: Everything is written to this folder; None: ``work_dirs/pretrain/NAME``, by the name of ``data``.
        resume: Continue what is in ``work_dir``, from the weights that it holds: ``init`` is that of the run, or None.
        amp: See :func:`~odis_mm.apis.train`.
        quiet: Log warnings only.

    Raises:
        ConfigError: an argument that cannot be used, or ``work_dir`` holds another run and ``resume`` is not set,
            or it holds none and ``resume`` is set.
        MissingFileError, CheckpointError: no such folder or file.
    """
    if steps is not None and hours is not None:
        raise ConfigError('steps and hours both set the length: give one of them.')
    if hours is not None and not 0 < hours < 1e5:
        raise ConfigError(f'hours must be above 0 and below 100,000, got {hours:g}.')
    check_data(data, images, [None if boxes == WITHOUT else boxes])
    if init is not None:
        check_checkpoint(init)
    work_dir = default_work_dir('pretrain', data) if work_dir is None else Path(work_dir)
    config = work_dir / CONFIGS['pretrain']
    if resume:
        check_resumable(work_dir)
        init = resumed_start(config, init, options or ())
    else:
        check_unused(work_dir, data)
    with logging_at('WARNING' if quiet else 'INFO'):
        if boxes is None:
            boxes = imported_boxes(Path(data), images, work_dir / 'annotations')
        known: Dict[str, Any] = dict(
            boxes=boxes, images=images, method=method, init=init, size=size, batch=batch, seed=seed, options=options
        )
        if hours is not None:
            steps, seconds = steps_in(hours, data, amp, known)
            tell([f'speed: {seconds:.2f} s per step on this machine, {steps} steps in {hours:g} hours'], quiet)
        cfg, _ = pretraining_config(data, steps=steps, **known)
        if resume:
            check_method(config, cfg.model.type)
        cfg = Config(cfg.to_dict(), cfg_text=MADE, filename=str(config))
        tell(cfg.notes, quiet)
        if quiet:
            cfg.log_level = 'WARNING'
        apis.train(cfg, work_dir=str(work_dir), resume='auto' if resume else None, amp=amp)
    return newest_export(work_dir)


def imported_boxes(data: Path, images: Optional[PathLike], folder: Path) -> Optional[Path]:
    """Return the training annotations of other formats (YOLO, Pascal VOC, ...) in a folder that has none of COCO style,
    as a COCO-style file; None if there are none, or, with a warning, none that can be used."""
    if not data.is_dir() or find_splits(data, ('train',), images):
        return None
    try:
        split = imported_splits(data, images, folder).get('train')
    except UnrecognisedError:
        return None
    except AnnotationError as error:
        print_log(f'annotations are not used: {error}', logger='current', level=logging.WARNING)
        return None
    if split is None:
        return None
    listed, there = len(read_coco(split.ann_file)['images']), count_images(data if images is None else images)
    print_log(
        f'annotations: {split.ann_file}; the images that it lists are used, {listed} of {there} in the folder',
        logger='current',
        level=logging.INFO if listed == there else logging.WARNING,
    )
    return split.ann_file


def steps_in(hours: float, data: PathLike, amp: Union[str, bool, None], known: Dict[str, Any]) -> Tuple[int, float]:
    """Return how many steps fit, and the seconds of one, from a few steps on this machine."""
    cfg, _ = pretraining_config(data, **{**known, 'steps': PROBE_STEPS})
    cfg.default_hooks.checkpoint.update(interval=10**6, save_last=False)
    cfg.log_level = 'ERROR'  # the run says it
    cfg.default_hooks.views = None
    with tempfile.TemporaryDirectory() as folder:
        cfg = Config(cfg.to_dict(), cfg_text=MADE, filename=str(Path(folder, 'probe.py')))
        runner = apis.train(cfg, work_dir=folder, amp=amp)
        history, _ = runner.message_hub.get_scalar('train/time').data
    seconds = float(sorted(history)[len(history) // 2])
    return max(4, int(0.95 * hours * 3600 / seconds)), seconds


def newest_export(folder: PathLike) -> Path:
    """Return the ``*_backbone.pth`` of the last checkpoint in a folder.

    Raises:
        StageError: there is none.
    """
    exports = sorted(
        Path(folder).glob('*_backbone.pth'), key=lambda path: [int(n) for n in re.findall(r'\d+', path.stem)]
    )
    if not exports:
        raise StageError(f'no *_backbone.pth in {folder}: the pretraining wrote no checkpoint.')
    return exports[-1]
