"""What objects are worth to ODIS: runs in which everything is the same but the boxes.

    python -m odis_mm.workflows.worth --out work_dirs/worth --teacher GTSA=work_dirs/gtsa_demo/epoch_30_backbone.pth
    odis-mm compare work_dirs/worth/plan.yaml

The first command makes the boxes (annotated ones worsened by known amounts, those of ``classic``, and those of
``attention`` with each teacher) and ``plan.yaml``. On the demo set it then pretrains for a short while with each of
them, measures the frozen backbones, and writes ``worth.md``. The second command pretrains with each of them, for
longer, and trains detectors. Both continue where they were interrupted.

With ``--data DIR`` (COCO style) it is the boxes of the user's training images, and ``worth.md`` tells their recall.
"""

import hashlib
import json
import logging
import os
from argparse import RawDescriptionHelpFormatter
from pathlib import Path
from shlex import quote
from typing import Dict, List, Optional, Sequence

import yaml
from mmengine.logging import print_log
from mmengine.registry import init_default_scope

from ..config import load_config
from ..datasets.annotations import coco_table
from ..datasets.demo import ensure_demo
from ..datasets.image_io import size_of
from ..datasets.layout import Split, find_splits, read_coco, split_coco
from ..evaluation.frozen import frozen_from
from ..evaluation.regions import region_proxy, region_split
from ..objects import Attention, Classic, degrade, find_objects, recall_of
from ..objects.recall import read_result
from ..utils.errors import ConfigError, run_command
from ..utils.files import atomic_write_text
from ..utils.parser import Parser, at_least
from ..utils.paths import check_out, check_work_dir
from .data import normalised
from .plan import Data, slug
from .stages import Stage, Stages, Worker, exports

RECIPE, STEPS = 'odis_demo_short', 62  # of the short pretrainings
# of the plan, on the demo set and on own data; from odis_demo_short a detector ends below one from random weights
PLAN, OWN_PLAN = ('odis_demo', 700), ('odis_small', 600)
_DATA = 'train_dataloader.dataset.'
_SAMPLE = _DATA + 'pipeline.1.'
DEGRADED = {
    'boxes at IoU 0.9': dict(iou=0.9),
    'boxes at IoU 0.7': dict(iou=0.7),
    'boxes at IoU 0.5': dict(iou=0.5),
    '30 percent missing': dict(missing=0.3),
    '60 percent missing': dict(missing=0.6),
    '30 percent false': dict(false=0.3),
    '60 percent false': dict(false=0.6),
}
_NO_POOL = {'model.lambda_pool': 0.0, _SAMPLE + 'others': 0}
VARIANTS = {  # with annotated boxes; what differs from the recipe
    'whole image': {_SAMPLE + 'target_rule': 'whole_image', _SAMPLE + 'others': 0},
    'one object per image': {_SAMPLE + 'others': 0},
    'cropping and masking, no pooled objects': _NO_POOL,
    'cropping only, no pooled objects': {'model.masked_attention': False, **_NO_POOL},
    'masking only, no pooled objects': {_SAMPLE + 'object_aware': False, **_NO_POOL},
}
BOXES = ('AR@10 IoU 0.5', 'precision@10')
FROZEN = ('object_token', 'box_pool', 'mask_miou')
# what odis_demo does in any case
SAME_ON_DEMO = ('one object per image', 'cropping and masking, no pooled objects')
IMAGES = (200, 200)  # of train and val, by which the frozen backbones are measured


def main(argv: Optional[List[str]] = None) -> None:
    parser = Parser(
        prog='python -m odis_mm.workflows.worth', description=__doc__, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument('--out', default='work_dirs/worth', help='boxes, runs, worth.md and plan.yaml go here')
    parser.add_argument('--data', metavar='DIR', help='own data, with annotations of COCO style')
    parser.add_argument('--data-root', default='data/odis_demo', help='without --data: of the demo set')
    parser.add_argument('--train-images', type=at_least(1), default=1000, help='of the rendered demo set')
    parser.add_argument(
        '--iterations',
        type=at_least(1),
        help=f'of every pretraining (default: {STEPS} of 32 images; in the plan {PLAN[1]}, with --data {OWN_PLAN[1]})',
    )
    parser.add_argument('--seeds', type=at_least(1), default=2, help='pretrainings of a row')
    parser.add_argument('--finetune-iters', type=at_least(1), default=300)
    parser.add_argument(
        '--teacher', nargs='*', default=[], metavar='NAME=FILE', help='ViTs whose attention finds objects'
    )
    parser.add_argument(
        '--size', type=at_least(1), default=128, help='longer side of the images for the teachers, in pixels'
    )
    parser.add_argument('--workers', type=at_least(0), help='processes that look for objects')
    args = parser.parse_args(argv)
    run_command(lambda: print(worth(**vars(args))))


def worth(
    out: str,
    data_root: str,
    train_images: int,
    iterations: Optional[int],
    seeds: int,
    finetune_iters: int,
    teacher: Sequence[str],
    size: int = 128,
    workers: Optional[int] = None,
    data: Optional[str] = None,
) -> str:
    """Make the boxes, ``plan.yaml`` and the table ``worth.md``, which is returned; see :func:`main`.

    Raises:
        ConfigError: ``out`` cannot be written, a teacher that is not written as NAME=FILE, or data without annotations
            of COCO style.
        StageError: of a training that failed.
    """
    check_out(out, folder=True)
    root = Path(data or ensure_demo(data_root, num_train=train_images)).resolve()
    check_work_dir(out, root, '--out')
    found_splits = find_splits(root, ('train', 'val'))
    split = found_splits.get('train')
    if split is None:
        raise ConfigError(f'{root} holds no COCO-style json of training images, whose boxes could be compared.')
    folder, own = Path(out).resolve(), dict(root=str(root))
    folder.mkdir(parents=True, exist_ok=True)
    if 'val' not in found_splits:  # held out here, so that no row has boxes of images that the comparison evaluates
        content = read_coco(split.ann_file)
        if content.get('annotations'):
            coco_table(content, split.ann_file)  # says what is not understood
        parts = split_coco(content, Data.held_out, seed=0)
        for name, part in zip(('train', 'val'), parts):
            own[name] = str(folder / f'{name}.json')
            atomic_write_text(own[name], json.dumps(part))
        own['images'] = str(split.images)
        split = Split(Path(own['train']), split.images)
    files, recall = _boxes(split, folder, teacher, size, workers)
    images = split.images
    rows: Dict[str, dict] = {'annotated boxes': {}}
    for row, path in files.items():
        rows[row] = {_DATA + 'data_root': '', _DATA + 'ann_file': str(path), _DATA + 'data_prefix': str(images)}
    rows.update(VARIANTS)
    recipe, steps = OWN_PLAN if data else PLAN
    starts = {
        row: dict(recipe=recipe, options=options) for row, options in rows.items() if data or row not in SAME_ON_DEMO
    }
    plan = dict(
        name='what objects are worth to ODIS',
        data=own,
        starts={'random weights': {}, **starts},
        baseline='annotated boxes',
        detector=dict(iterations=finetune_iters, **({} if data else dict(size=128))),
        pretraining=dict(iterations=iterations or steps),
        seeds=dict(pretraining=seeds, detector=2),
    )
    atomic_write_text(folder / 'plan.yaml', yaml.safe_dump(plan, sort_keys=False))
    then = f'Detectors: odis-mm compare {quote(str(folder / "plan.yaml"))}'
    if data:
        text = _markdown(['boxes', *BOXES], [[row, *_percent(found)] for row, found in recall.items()])
        atomic_write_text(folder / 'worth.md', text + '\n')
        return f'{text}\n\n{then}'
    stages = Stages(folder, jobs=1)
    runs = {
        (row, seed): _run(root, row, rows[row], files.get(row), iterations or STEPS, seed)
        for seed in range(seeds)
        for row in rows
    }
    first = runs['annotated boxes', 0]
    random = Stage(
        'random_weights',
        dict(measured=IMAGES),
        lambda worker, place, results: dict(
            measures=measure_boxes(stages.path(first) / 'run' / results[first.name]['export'], root, random=True)
        ),
        (first,),
    )
    found = stages.run([first, random, *runs.values()])
    measures = {row: [found[runs[row, seed].name]['measures'] for seed in range(seeds)] for row in rows}
    text = table({'random weights': [found[random.name]['measures']], **measures}, recall)
    atomic_write_text(folder / 'worth.md', text + '\n')
    return f'{text}\n\n{then}'


def _boxes(split: Split, folder: Path, teacher: Sequence[str], size: int, workers: Optional[int]):
    """Files of worsened and of found boxes by row, and their recall and precision."""
    truth = _truth(split)
    files: Dict[str, Path] = {}
    for row, how in DEGRADED.items():
        files[row] = folder / f'{slug(row)}.json'
        atomic_write_text(files[row], json.dumps(degrade(truth, **how)))
    sources = {'classic': Classic(top=10)}
    for text in teacher:
        name, given, file = text.partition('=')
        if not given:
            raise ConfigError(f'--teacher takes NAME=FILE, got {text!r}.')
        sources[f'attention of {name}'] = Attention(file, size=size)
    for row, source in sources.items():
        files[row] = folder / f'{slug(row)}.json'
        find_objects(split.images, files[row], source, ann_file=split.ann_file, workers=workers)
    return files, {row: recall_of(_scored(read_result(path)), truth) for row, path in files.items()}


def _truth(split: Split) -> dict:
    notes: List[str] = []
    content = normalised(split, notes)
    for note in notes:
        print_log(note, logger='current', level=logging.WARNING)
    folder = split.images.resolve()
    for image in content['images']:
        if not (image.get('width') and image.get('height')):
            image['height'], image['width'] = size_of(image['file_name'])
        image['file_name'] = Path(os.path.relpath(image['file_name'], folder)).as_posix()  # as those of found boxes
    return content


def _run(root: Path, row: str, options: dict, boxes: Optional[Path], iterations: int, seed: int) -> Stage:
    """A pretraining and the measures of its frozen teacher."""
    options = {
        _DATA + 'data_root': str(root),
        **options,
        _DATA + 'seed': seed,
        'randomness.seed': seed,
        'train_cfg.max_iters': iterations,
        'default_hooks.views': None,
    }
    settings = dict(
        recipe=load_config(RECIPE).to_dict(),
        options=options,
        boxes=hashlib.sha256(boxes.read_bytes()).hexdigest() if boxes else None,
        measured=IMAGES,
    )

    def work(worker: Worker, place: Path, _: Dict[str, dict]) -> dict:
        run = place / 'run'
        told = [f'{key}={value}' for key, value in options.items()]
        worker.command(['train', RECIPE, '--work-dir', run, '--resume', 'auto', '--cfg-options', *told], place)
        export = exports(run)[-1]
        return dict(export=export.name, measures=measure_boxes(export, root))

    return Stage(f'{slug(row)}_{seed}', settings, work)


def measure_boxes(export: Path, root: Path, random: bool = False) -> Dict[str, float]:
    init_default_scope('mmpretrain')
    frozen = frozen_from(export, random=random)
    names = [f'annotations/instances_{part}2017.json' for part in ('train', 'val')]
    split = region_split(frozen, str(root), names, ('train2017', 'val2017'), (128,), IMAGES)
    return region_proxy(frozen, *split)


def table(measures: Dict[str, List[Dict[str, float]]], recall: Dict[str, dict]) -> str:
    """Rows of frozen measures, mean and each seed, and of the boxes' recall where they are not the annotated ones."""
    head = ['boxes', *BOXES, *(f'{name} (each seed)' for name in FROZEN)]
    rows = []
    for row, seeds in measures.items():
        cells = [row, *(_percent(recall[row]) if row in recall else [''] * len(BOXES))]
        for name in FROZEN:
            values = [found[name] for found in seeds]
            each = f' ({", ".join(f"{value:.1f}" for value in values)})' if len(values) > 1 else ''
            cells.append(f'{sum(values) / len(values):.1f}{each}')
        rows.append(cells)
    return _markdown(head, rows)


def _percent(found: Dict[str, float]) -> List[str]:
    return [f'{found[key]:.1f}' for key in BOXES]


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f'| {" | ".join(cells)} |' for cells in (head, *rows)]
    return '\n'.join([lines[0], '|---' * len(head) + '|', *lines[1:]])


def _scored(content: dict) -> dict:
    """Boxes without scores, in an order that tells nothing of how good they are."""
    return {**content, 'annotations': [{'score': 1.0, **entry} for entry in content['annotations']]}


if __name__ == '__main__':
    main()
