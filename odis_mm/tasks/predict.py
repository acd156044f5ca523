"""What a trained detector finds in images."""

import json
import logging
import warnings
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Set, Tuple, Union

from mmengine.logging import print_log

from ..config import load_config
from ..engine.fit import load_fitting
from ..transfer import load_local
from ..utils.environment import check_device, check_operators
from ..utils.errors import BadImageError, CheckpointError, ConfigError
from ..utils.files import PathLike, atomic_write_text
from ..utils.noise import quiet_imports
from ..utils.paths import PREDICTIONS, check_output, check_threshold, find_detector, find_images
from ..utils.scopes import scope_of
from ..utils.words import count
from .logs import tell

# of weights that the inferencer was not given (they are loaded, and checked, right after), of a visualizer that keeps
# nothing, and of boxes that reach the border
NOISE = 'Checkpoint is not loaded|weights is None|palette does not|Failed to add .*LocalVisBackend|.*out of bounds'
THRESHOLD = 0.3  # least score of a box that is drawn
DRAWN_AS = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff')  # what pictures can be written as


def predict(
    run: PathLike,
    checkpoint: Optional[PathLike],
    images: Union[PathLike, Sequence[PathLike]],
    out: PathLike,
    *,
    threshold: float = THRESHOLD,
    batch: int = 8,
    device: Optional[str] = None,
    quiet: bool = False,
) -> Path:
    """Run a detector on images; write pictures and a COCO-style json.

    Args:
        run: The detector's config, or the work dir of its training.
        checkpoint: Its weights; None: the newest checkpoint of the work dir.
        images: Files and folders.
        out: ``predictions.json`` (images, categories, and annotations with a ``score`` and, if the detector makes some,
            masks; those of any score above the ``score_thr`` of the config; of the images so far, where it was
            interrupted) and ``vis/`` (of at least ``threshold``, with their scores) are written to this folder, which
            lies outside those of ``images`` and holds no ``predictions.json``. Categories have the ids of the training
            annotations if :func:`finetune` made the detector, else its labels' numbers.
        threshold: Least score of a box that is drawn, in 0..1.
        batch: Images at a time.
        device: As torch names it; None: the GPU, if there is one.
        quiet: No progress bar.

    Returns:
        The path of the json.

    Raises:
        ConfigError: ``run`` is no detector's config, or holds none; ``out`` lies in a folder of ``images``; or
            ``threshold`` or ``device`` is none; or mmcv's operators do not run on it.
        FolderInUseError: ``out`` holds predictions.
        CheckpointError: the weights are those of another model.
        MissingFileError: no such file or folder, or no image in it.
        BadImageError: no image can be read; if some can, the others are left out with a warning.
    """
    config, weights = find_detector(run, checkpoint)
    sources = [images] if isinstance(images, (str, Path)) else images
    left: List[Tuple[int, str]] = []
    paths = find_images(sources, left)
    check_output(out, sources)
    check_threshold(threshold)
    if device is not None:
        check_device(device)
    check_operators(device or 'cuda')
    cfg = load_config(config)
    if 'test_dataloader' not in cfg or cfg.get('default_scope') != 'mmdet':
        raise ConfigError(f'{config} is not the config of a detector: take the one in the work dir of its training.')
    with quiet_imports():
        from ..detection.inference import FileInferencer

    for level, line in left:
        print_log(line, logger='current', level=level)
    cfg.model.backbone.pop('init_cfg', None)  # everything comes from the detector's checkpoint
    with scope_of('mmdet'):  # DetInferencer leaves its scope behind
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', message=NOISE)
            inferencer = FileInferencer(cfg, picture_names(paths), weights=None, device=device, show_progress=not quiet)
            classes = _load(inferencer.model, weights, cfg)
            # the visualizer was made without weights, so it names COCO's classes
            inferencer.visualizer.dataset_meta = inferencer.model.dataset_meta
            ids = inferencer.model.dataset_meta.get('category_ids') or range(len(classes))
            target = Path(out) / PREDICTIONS
            try:
                inferencer([str(p) for p in paths], batch_size=batch, out_dir=str(out), pred_score_thr=threshold)
            except BaseException:  # Ctrl-C after an hour as well
                if inferencer.found:
                    _write(target, inferencer, dict(zip(ids, classes)))
                    what = f'{target} holds the predictions of the first {len(inferencer.found)} of {len(paths)} images'
                    print_log(f'interrupted: {what}', logger='current', level=logging.WARNING)
                raise
    if not inferencer.found:
        raise BadImageError(f'none of {len(paths)} images can be read; the first: {inferencer.bad[0]}')
    content = _write(target, inferencer, dict(zip(ids, classes)))
    tell([drawn_boxes(content, threshold)], quiet)
    return target


def _write(target: Path, inferencer, classes: Dict[Any, str]) -> dict:
    for sentence in inferencer.bad:
        print_log(f'left out: {sentence}', logger='current', level=logging.WARNING)
    content = _as_coco(inferencer.found, classes)
    target.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(target, json.dumps(content))
    return content


def drawn_boxes(content: dict, threshold: float = THRESHOLD) -> str:
    """Return in a line how many boxes the pictures of :func:`predict` have, and why some have none, from the content of
    its json."""
    best = {image['id']: 0.0 for image in content['images']}
    for annotation in content['annotations']:
        best[annotation['image_id']] = max(best[annotation['image_id']], annotation['score'])
    drawn = sum(annotation['score'] >= threshold for annotation in content['annotations'])
    empty = [score for score in best.values() if score < threshold]
    boxes, pictures = count(len(content['annotations']), 'box', 'boxes'), count(len(best), 'picture')
    line = f'{drawn} of {boxes} (score {threshold:g} or more) drawn in {pictures}'
    if empty:
        several = len(empty) > 1
        what = 'pictures have no box: the best score in them' if several else 'picture has no box: the best score in it'
        score = int(max(empty) * 100) / 100  # cut, not rounded: 0.297 is below 0.3
        line += (
            f'; {len(empty)} {what} is {score:.2f}, below the threshold of {threshold:g}: lower it (odis-mm '
            'predict --threshold), or train the detector for longer'
        )
    return line


def picture_names(paths: Sequence[Path]) -> Dict[str, str]:
    """Return a name for the picture of each image: its own, with a number where several have it."""
    names: Dict[str, str] = {}
    taken: Set[str] = set()
    for path in paths:
        name, number = path.name, 2
        if path.suffix.lower() not in DRAWN_AS:
            name += '.png'
        while name in taken:
            name, number = f'{path.stem}_{number}{Path(name).suffix}', number + 1
        taken.add(name)
        names[str(path)] = name
    return names


def _load(model, weights: Path, cfg) -> List[str]:
    """Every tensor of the detector from its checkpoint; returns the names of the classes."""
    content = load_local(str(weights))
    remedy = f'take the iter_N.pth or epoch_N.pth of the training of {cfg.filename}.'
    for note in load_fitting(model, content, str(weights), remedy):
        print_log(note, logger='current', level=logging.WARNING)
    meta = (content.get('meta') or {}).get('dataset_meta') or {}
    classes = list(meta.get('classes') or cfg.test_dataloader.dataset.get('metainfo', {}).get('classes') or [])
    if not classes:
        raise CheckpointError(
            f'{weights} does not tell its classes, and neither does the config: set test_dataloader.dataset.metainfo.'
        )
    model.dataset_meta = {**meta, 'classes': tuple(classes)}
    return classes


def _as_coco(found: Sequence[Tuple[str, Tuple[int, int], List[dict]]], classes: Dict[Any, str]) -> dict:
    images, annotations, ids = [], [], list(classes)
    for number, (path, (height, width), entries) in enumerate(found):
        images.append(dict(id=number, file_name=path, width=width, height=height))
        for entry in entries:
            entry = {**entry, 'category_id': ids[entry['category_id']]}
            annotations.append(dict(id=len(annotations) + 1, image_id=number, **entry))
    return dict(
        images=images, categories=[dict(id=i, name=name) for i, name in classes.items()], annotations=annotations
    )
