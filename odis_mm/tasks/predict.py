"""What a trained detector finds in images."""

import json
import re
import warnings
from pathlib import Path
from typing import List, Optional, Sequence, Union

import numpy as np
from PIL import Image

from ..config import load_config
from ..datasets.image_io import IMAGE_SUFFIXES
from ..transfer import load_local
from ..utils.errors import CheckpointError, ConfigError, MissingFileError
from ..utils.files import PathLike, atomic_write_text
from ..utils.scopes import scope_of


def predict(
    run: PathLike,
    checkpoint: Optional[PathLike],
    images: Union[PathLike, Sequence[PathLike]],
    out: PathLike,
    *,
    threshold: float = 0.3,
    batch: int = 8,
    device: Optional[str] = None,
    quiet: bool = False,
) -> Path:
    """Run a detector on images; write pictures and a COCO-style json.

    Args:
        run: The detector's config, or the work dir of its training.
        checkpoint: Its weights; None: the newest checkpoint of the work dir.
        images: Files and folders.
        out: ``predictions.json`` (images, categories, and annotations with a ``score``; boxes of any score) and
            ``vis/`` (boxes of at least ``threshold``) are written to this folder.
        threshold: Least score of a box that is drawn.
        batch: Images at a time.
        quiet: No progress bar.

    Returns:
        The path of the json.

    Raises:
        ConfigError: ``run`` is no detector's config, or holds none.
        CheckpointError: the weights are those of another model.
        MissingFileError: no such file or folder, or no image in it.
    """
    config, weights = _find_run(Path(run), checkpoint)
    paths = find_images([images] if isinstance(images, (str, Path)) else images)
    cfg = load_config(config)
    if 'test_dataloader' not in cfg or cfg.get('default_scope') != 'mmdet':
        raise ConfigError(f'{config} is no config of a detector: take the one in the work dir of its training.')
    from mmdet.apis import DetInferencer

    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    cfg.model.backbone.pop('init_cfg', None)  # everything comes from the detector's checkpoint
    with scope_of('mmdet'):  # DetInferencer leaves its scope behind
        with warnings.catch_warnings():  # of weights that it was not given: they are loaded, and checked, right after
            warnings.filterwarnings('ignore', message='Checkpoint is not loaded|weights is None|palette does not')
            inferencer = DetInferencer(cfg, weights=None, device=device, show_progress=not quiet)
        classes = _load(inferencer.model, weights, cfg)
        found = inferencer([str(p) for p in paths], batch_size=batch, out_dir=str(out), pred_score_thr=threshold)
    target = out / 'predictions.json'
    atomic_write_text(target, json.dumps(_as_coco(paths, found['predictions'], classes)))
    return target


def find_images(sources: Sequence[PathLike]) -> List[Path]:
    """Return the image files that are named, and those in and below folders that are named.

    Raises:
        MissingFileError: a source does not exist, or a folder holds no image.
    """
    found: List[Path] = []
    for source in map(Path, sources):
        if source.is_dir():
            inside = sorted(
                p
                for p in source.rglob('*')
                if p.suffix.lower() in IMAGE_SUFFIXES
                and not any(part.startswith('.') for part in p.relative_to(source).parts)
            )
            if not inside:
                raise MissingFileError(f'no image in or below {source}.')
            found += inside
        elif source.is_file():
            found.append(source)
        else:
            raise MissingFileError(f'no image or folder {source}.')
    return found


def _find_run(run: Path, checkpoint: Optional[PathLike]):
    config = run
    if run.is_dir():
        configs = sorted(run.glob('*.py'))
        if len(configs) != 1:
            raise ConfigError(f'{run} holds {len(configs)} configs (*.py): name the one of the detector.')
        config = configs[0]
    if checkpoint is None:
        folder = config.parent
        files = [p for p in folder.glob('*.pth') if re.fullmatch(r'(epoch|iter)_\d+\.pth', p.name)]
        if not files:
            raise MissingFileError(f'{folder} holds no checkpoint of a detector (iter_N.pth, epoch_N.pth): name one.')
        checkpoint = max(files, key=lambda p: p.stat().st_mtime)
    if not Path(checkpoint).is_file():
        raise MissingFileError(f'no checkpoint {checkpoint}.')
    return config, Path(checkpoint)


def _load(model, weights: Path, cfg) -> List[str]:
    """Every tensor of the detector from its checkpoint; returns the names of the classes."""
    content = load_local(str(weights))
    state, own = content.get('state_dict', content), model.state_dict()
    wrong = [key for key, value in own.items() if key not in state or state[key].shape != value.shape]
    if wrong:
        raise CheckpointError(
            f'{weights} does not hold {wrong[0]} as the detector has it ({len(wrong)} of {len(own)} tensors): take the '
            'iter_N.pth or epoch_N.pth of a training of this config.'
        )
    model.load_state_dict(state)
    meta = (content.get('meta') or {}).get('dataset_meta') or {}
    classes = list(meta.get('classes') or cfg.test_dataloader.dataset.get('metainfo', {}).get('classes') or [])
    if not classes:
        raise CheckpointError(
            f'{weights} does not tell its classes, and neither does the config: set test_dataloader.dataset.metainfo.'
        )
    model.dataset_meta = {'palette': 'random', **meta, 'classes': tuple(classes)}
    return classes


def _as_coco(paths: Sequence[Path], predictions: Sequence[dict], classes: Sequence[str]) -> dict:
    images, annotations = [], []
    for number, (path, found) in enumerate(zip(paths, predictions)):
        with Image.open(path) as image:
            width, height = image.size
        images.append(dict(id=number, file_name=str(path), width=width, height=height))
        for label, score, box in zip(found['labels'], found['scores'], found['bboxes']):
            x1, y1, x2, y2 = np.round(box, 2).tolist()
            annotations.append(
                dict(
                    id=len(annotations),
                    image_id=number,
                    category_id=int(label),
                    bbox=[x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)],
                    area=round((x2 - x1) * (y2 - y1), 2),
                    iscrowd=0,
                    score=round(float(score), 4),
                )
            )
    return dict(
        images=images, categories=[dict(id=i, name=name) for i, name in enumerate(classes)], annotations=annotations
    )
