"""Training a detector on a user's own data."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any, Dict, Optional, Tuple, Union

from mmengine.config import Config
from mmengine.logging import print_log

from .. import apis
from ..config import MADE, load_config
from ..datasets.annotations import coco_table
from ..datasets.layout import (
    Split,
    annotated_parent,
    categories,
    count_images,
    find_splits,
    image_folder,
    read_coco,
    split_coco,
    told_of_found,
    without_objects,
)
from ..datasets.values import identity
from ..objects.annotations import imported_splits
from ..objects.formats import UnrecognisedError, recognise
from ..objects.labelled import ImageIndex
from ..recipes.arguments import check_arguments
from ..recipes.detector import BATCH, detector_config, read_content
from ..utils.errors import AnnotationError, ConfigError, MissingFileError
from ..utils.files import PathLike, atomic_write_text
from ..utils.noise import quiet_imports
from ..utils.origin import CONFIGS, resumed_start
from ..utils.paths import check_checkpoint, check_data, check_resumable, check_unused, default_work_dir, find_file
from .logs import logging_at, tell
from .predict import drawn_boxes, predict

HELD_OUT = 0.2  # of the images, if the data has no validation split
PER_IMAGE = 10  # passes over the data by default
SHORTEST, LONGEST = 300, 20000  # default iterations
PICTURES = 8


@dataclass(frozen=True)
class Finetuned:
    """What a fine-tuning gave.

    Attributes:
        checkpoint: The detector's last checkpoint.
        config: The config that it was trained with.
        metrics: COCO's on the validation split, and ``AP of CLASS``, of boxes, for each class; in percent.
        drawn: What the pictures in ``predictions/vis`` show, a line.
    """

    checkpoint: Path
    config: Path
    metrics: Dict[str, float]
    drawn: str


def finetune(
    data: PathLike,
    *,
    init: Optional[PathLike] = None,
    detector: Optional[str] = None,
    train: Optional[PathLike] = None,
    val: Optional[PathLike] = None,
    images: Optional[PathLike] = None,
    steps: Optional[int] = None,
    size: Optional[int] = None,
    batch: Optional[int] = None,
    work_dir: Optional[PathLike] = None,
    resume: bool = False,
    seed: int = 0,
    amp: Union[str, bool, None] = None,
    quiet: bool = False,
    options: Optional[Dict[str, Any]] = None,
) -> Finetuned:
    """Train a detector on annotated images, evaluate it, and draw what it finds on some of the validation images.

    Args:
        data: Folder of a data set that :func:`~odis_mm.datasets.layout.find_splits` or
            :func:`~odis_mm.objects.load_annotations` (YOLO, Pascal VOC, ...) recognises; without a validation split, a
            fifth of the training images, drawn by ``seed``, is held out.
        init: An export of a pretraining, or a ViT of any layout that transfer reads; None: random weights.
        detector: Name or path of a detector's config; None: a Mask R-CNN if all objects have masks, else a Faster
            R-CNN, of a size for small data.
        train, val: COCO-style json files in place of those found in ``data``; absolute or below it.
        images: Image folder of both, if it is not found near them.
        steps: Length; None: ten passes over the training images, at least 300 and at most 20,000 steps.
        size: Shortest side of the images in pixels; None: 128 or more, as the objects need, or that of ``detector``.
        batch: Images per step.
        work_dir: Config, log, checkpoint, ``predictions/`` and ``metrics.json`` are written here; None:
            ``work_dirs/finetune/NAME``, by the name of ``data``.
        resume: Continue what is in ``work_dir``, from the weights that it holds: ``init`` is that of the run, or None.
        quiet: Log warnings only.
        options: ``--cfg-options``, set last.

    Raises:
        ConfigError: an argument that cannot be used, annotations without boxes, or a ``work_dir`` that holds another
            run, or none that could be resumed.
        MissingFileError, CheckpointError: no such folder or file.
    """
    check_arguments(batch, seed, options)
    check_data(data, images, [train, val])
    if init is not None:
        check_checkpoint(init)
    work_dir = default_work_dir('finetune', data) if work_dir is None else Path(work_dir)
    config = work_dir / CONFIGS['finetune']
    if resume:
        check_resumable(work_dir)
        init = resumed_start(config, init, options or ())
    with logging_at('WARNING' if quiet else 'INFO'):
        found = annotated_splits(Path(data), train, val, images)
        if not resume:
            check_unused(work_dir, data)
        splits = detector_splits(Path(data), found, images, work_dir, seed, resume)
        content = read_content(splits[0])
        if steps is None:
            steps = default_steps(content.images, batch, detector)
        cfg = detector_config(
            *splits, detector=detector, init=init, size=size, iterations=steps, batch=batch, seed=seed, options=options
        )
        cfg = Config(cfg.to_dict(), cfg_text=MADE, filename=str(config))
        for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
            evaluator.classwise = True
        _without_tables(cfg)
        cfg.default_hooks.curves = dict(type='mmpretrain.CurvesHook')
        cfg.notes = [
            *cfg.get('notes', []),
            f'data: {content.images} images to train on ({splits[0].ann_file}'
            + (f'; {content.bare} more have no object and are left out' if content.bare else '')
            + f'), validation {splits[1].ann_file}',
            f'classes: {", ".join(content.classes)}',
            f'detector: {detector or ("mask-rcnn_small" if content.masks else "faster-rcnn_small")}, {steps} steps, '
            + (f'backbone from {init}' if init else 'backbone from random weights'),
        ]
        tell(cfg.notes, quiet)
        if quiet:
            cfg.log_level = 'WARNING'
        runner = apis.train(cfg, work_dir=str(work_dir), resume='auto' if resume else None, amp=amp)
    checkpoint = Path(work_dir, Path(runner.message_hub.runtime_info['last_ckpt']).name)  # it may have been moved
    metrics = _metrics(runner)
    atomic_write_text(work_dir / 'metrics.json', json.dumps(metrics, indent=1) + '\n')
    names = [image['file_name'] for image in read_coco(splits[1].ann_file)['images'][:PICTURES]]
    Path(work_dir, 'predictions', 'predictions.json').unlink(missing_ok=True)  # of the run that was resumed
    predictions = predict(
        config, checkpoint, [splits[1].images / name for name in names], work_dir / 'predictions', quiet=True
    )
    drawn = drawn_boxes(json.loads(predictions.read_text()))
    return Finetuned(checkpoint, config, metrics, drawn)


def default_steps(images: int, batch: Optional[int] = None, detector: Optional[str] = None) -> int:
    """Return the steps of :func:`finetune` for so many training images, by the batch or that of the detector's
    config."""
    if batch is None:
        batch = BATCH if detector is None else load_config(detector).train_dataloader.batch_size
    return min(max(PER_IMAGE * images // batch, SHORTEST), LONGEST)


def _without_tables(cfg: Config) -> None:
    """Validation prints no tables: the figures are in the log, and what finetune returns is reported once."""
    with quiet_imports():
        from ..detection import metrics

    if cfg.val_evaluator.type == 'CocoMetric':
        cfg.val_evaluator.type = 'UntabledCocoMetric'
        imports = cfg.get('custom_imports', {}).get('imports', [])
        imports = [imports] if isinstance(imports, str) else imports
        cfg.custom_imports = dict(imports=[*imports, metrics.__name__], allow_failed_imports=False)


def annotated_splits(
    data: Path, train: Optional[PathLike], val: Optional[PathLike], images: Optional[PathLike]
) -> Dict[str, Split]:
    """Return the splits of COCO style that are named or found; nothing is written.

    Raises:
        MissingFileError: a file that was named is missing, or there are no annotations of any format.
    """
    named = {name: path for name, path in (('train', train), ('val', val)) if path is not None}
    found = {} if len(named) == 2 else find_splits(data, {'train', 'val', 'test'} - set(named), images)
    for line in told_of_found(found['train'].ann_file) if 'train' in found else ():
        print_log(line, logger='current', level=logging.WARNING)
    for name, path in named.items():
        file = find_file(path, data)
        found[name] = Split(file, Path(images) if images else image_folder(file, data, name))
    if 'train' not in found:
        try:
            recognise(data, ImageIndex(Path(images or data)))
        except UnrecognisedError as error:
            parent = annotated_parent(data)
            raise MissingFileError(
                f'{data} holds no annotations to train a detector on (looked for COCO-style json, YOLO, Pascal VOC and '
                'others, in it and in its folders): '
                + (
                    f'those of its images lie in {parent}, so take --data {quote(str(parent))}.'
                    if parent
                    else 'put them there, or name a COCO-style json with --train FILE. To pretrain, images alone are '
                    'enough.'
                )
            ) from error
        except AnnotationError as error:
            raise _unusable(data, error) from error
    return found


def _unusable(data: Path, error: AnnotationError) -> MissingFileError:
    return MissingFileError(f'{data} holds no COCO-style json to train a detector on, and of other formats: {error}')


def detector_splits(
    data: Path, found: Dict[str, Split], images: Optional[PathLike], work_dir: Path, seed: int, resume: bool = False
) -> Tuple[Split, Split, Optional[Split]]:
    """Return the training, validation and, if there is one, test split. Annotations of other formats than COCO style,
    and a missing validation split, which is cut off, are written to ``work_dir``.

    Args:
        found: By :func:`annotated_splits`.
        resume: Keep what a run in ``work_dir`` has held out: cut off anew, by another seed or after images were added,
            it would hold images that the detector was trained on.

    Raises:
        MissingFileError: annotations that cannot be used.
        ConfigError: too few images.
    """
    folder = work_dir / 'annotations'
    if resume and 'val' not in found:
        place = found['train'].images if 'train' in found else Path(images or data)
        files = {name: folder / f'{name}.json' for name in ('train', 'val', 'test')}
        kept = {name: Split(file, place) for name, file in files.items() if file.is_file()}
        if {'train', 'val'} <= set(kept):
            return kept['train'], kept['val'], kept.get('test') or found.get('test')
    if 'train' not in found:
        try:
            imported = imported_splits(data, images, folder)
        except AnnotationError as error:
            raise _unusable(data, error) from error
        listed = sum(len(read_coco(split.ann_file)['images']) for split in imported.values())
        there = count_images(images or data)
        if listed < there:
            print_log(
                f'{there - listed} of {there} images in {images or data} have no annotation that is used, so the '
                'detector is neither trained nor evaluated on them (YOLO: give those without objects an empty label '
                'file)',
                logger='current',
                level=logging.WARNING,
            )
        found = {**imported, **found}
    if 'val' not in found:
        content = read_coco(found['train'].ann_file)
        if content.get('annotations'):
            coco_table(content, found['train'].ann_file)  # says what is not understood
        if len(content['images']) < 2:
            raise ConfigError(
                f'{found["train"].ann_file} has {len(content["images"])} image, too few to hold some out for '
                'validation: name other annotations with --val FILE.'
            )
        rest, held = split_coco(content, HELD_OUT, seed)
        folder.mkdir(parents=True, exist_ok=True)
        for name, part in (('train', rest), ('val', held)):
            atomic_write_text(folder / f'{name}.json', json.dumps(part))
        print_log(
            f'no validation split: {len(held["images"])} of {len(held["images"]) + len(rest["images"])} images are '
            f'held out for it ({folder}); a pretraining on the same data has seen them, so AP may be a little higher '
            'than on new images (odis-mm compare holds them out of both)',
            logger='current',
        )
        for name, part in (('training', rest), ('validation', held)):
            absent = without_objects(part, categories(content))
            if absent:
                print_log(f'no {name} image has an object of: {absent}', logger='current', level=logging.WARNING)
        folder_of_images = found['train'].images
        found['train'], found['val'] = (Split(folder / f'{name}.json', folder_of_images) for name in ('train', 'val'))
    found = {name: _without_twins(name, split, folder) for name, split in found.items()}
    return found['train'], found['val'], found.get('test')


def _without_twins(name: str, split: Split, folder: Path) -> Split:
    """A split without categories that have no object and the name of another one: Roboflow's exports begin with one of
    the data set's name, which often is that of its class, and mmdet, which goes by names, would take it for a class."""
    content = read_coco(split.ann_file)
    listed = content.get('categories') or []
    names = [str(category.get('name')) for category in listed if isinstance(category, dict)]
    if len(set(names)) == len(listed) or not content.get('annotations'):
        return split
    coco_table(content, split.ann_file)  # says what is not understood
    used = {identity(category['id']) for category in categories(content)}
    chosen: Dict[str, Any] = {}
    for category in sorted(listed, key=lambda category: identity(category['id']) not in used):
        chosen.setdefault(str(category.get('name')), category)
    kept = [c for c in listed if identity(c['id']) in used or chosen[str(c.get('name'))] is c]
    if len(kept) == len(listed):
        return split
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write_text(folder / f'{name}.json', json.dumps({**content, 'categories': kept}))
    return Split(folder / f'{name}.json', split.images)


def _metrics(runner) -> Dict[str, float]:
    """In percent, the last values that the evaluation logged, without those of sizes that the split lacks."""
    found = {}
    for key in runner.message_hub.log_scalars:
        if key.startswith('val/coco/'):
            name = key.removeprefix('val/coco/')
            value = 100 * float(runner.message_hub.get_scalar(key).current())
            if not value >= 0:  # COCO's -1, or NaN: there is no such object
                continue
            found[name if name.startswith(('bbox_', 'segm_')) else f'AP of {name.removesuffix("_precision")}'] = round(
                value, 2
            )
    return found
