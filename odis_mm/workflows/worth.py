"""What objects are worth to ODIS: a plan of ``odis-mm compare`` in which everything is the same but the boxes.

    python -m odis_mm.workflows.worth --out work_dirs/worth --teacher GTSA=work_dirs/gtsa_demo/epoch_30_backbone.pth
    odis-mm compare work_dirs/worth/plan.yaml

The first command makes the boxes (annotated ones worsened by known amounts, those of ``classic``, and those of
``attention`` with each teacher) and tells how good they are; it is resumable, as the second is.
"""

import argparse
import json
from pathlib import Path
from typing import Dict, List, Optional

import yaml

from ..datasets.demo import ensure_demo
from ..objects import Attention, Classic, degrade, find_objects, recall_of
from ..objects.recall import read_result
from ..utils.errors import ConfigError, run_command
from ..utils.files import atomic_write_text

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
VARIANTS = {  # with annotated boxes
    'cropping only': {'model.masked_attention': False},
    'masking only': {_SAMPLE + 'object_aware': False},
    'whole image': {_SAMPLE + 'target_rule': 'whole_image'},
}
MEASURES = ('AR@10 IoU 0.5', 'AR@100 IoU 0.5', 'AR@10', 'precision@10')


def main(argv: Optional[List[str]] = None) -> None:
    parser = argparse.ArgumentParser(prog='python -m odis_mm.workflows.worth', description=__doc__)
    parser.add_argument('--out', default='work_dirs/worth', help='boxes, their measures and plan.yaml go here')
    parser.add_argument('--data-root', default='data/odis_demo')
    parser.add_argument('--train-images', type=int, default=4000, help='of the rendered demo set')
    parser.add_argument('--iterations', type=int, default=930, help='of every pretraining')
    parser.add_argument('--finetune-iters', type=int, default=300)
    parser.add_argument(
        '--teacher', nargs='*', default=[], metavar='NAME=FILE', help='ViTs whose attention finds objects'
    )
    parser.add_argument('--size', type=int, default=128, help='longer side of the images for the teachers, in pixels')
    parser.add_argument('--workers', type=int)
    args = parser.parse_args(argv)
    run_command(lambda: print(make_plan(**vars(args))))


def make_plan(
    out: str,
    data_root: str,
    train_images: int,
    iterations: int,
    finetune_iters: int,
    teacher: List[str],
    size: int = 128,
    workers: Optional[int] = None,
) -> str:
    """Make the boxes of all rows and ``plan.yaml``; see :func:`main`. Returns the measures of the boxes as Markdown.

    Raises:
        ConfigError: a teacher that is not written as NAME=FILE.
    """
    root = Path(ensure_demo(data_root, num_train=train_images)).resolve()
    images, truth = root / 'train2017', read_result(root / 'annotations' / 'instances_train2017.json')
    folder = Path(out).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    files: Dict[str, Path] = {}
    for row, how in DEGRADED.items():
        files[row] = folder / f'{row.replace(" ", "_")}.json'
        atomic_write_text(files[row], json.dumps(degrade(truth, **how)))
    sources = {'classic': Classic(top=10)}
    for text in teacher:
        name, given, file = text.partition('=')
        if not given:
            raise ConfigError(f'--teacher takes NAME=FILE, got {text!r}.')
        sources[f'attention of {name}'] = Attention(file, size=size)
    for row, source in sources.items():
        files[row] = folder / f'{row.replace(" ", "_")}.json'
        find_objects(images, files[row], source, workers=workers)
    recall = {row: recall_of(_scored(read_result(path)), truth) for row, path in files.items()}
    starts: Dict[str, dict] = {'random weights': {}, 'annotated boxes': dict(recipe='odis_demo')}
    for row, path in files.items():
        options = {_DATA + 'data_root': '', _DATA + 'ann_file': str(path), _DATA + 'data_prefix': str(images)}
        starts[row] = dict(recipe='odis_demo', options=options)
    starts.update({row: dict(recipe='odis_demo', options=options) for row, options in VARIANTS.items()})
    plan = dict(
        name='what objects are worth to ODIS, on the demo set',
        data=dict(root=str(root)),
        starts=starts,
        baseline='annotated boxes',
        detector=dict(size=128, iterations=finetune_iters),
        pretraining=dict(iterations=iterations),
        seeds=dict(pretraining=2, detector=2),
    )
    atomic_write_text(folder / 'plan.yaml', yaml.safe_dump(plan, sort_keys=False))
    lines = [f'| boxes | {" | ".join(MEASURES)} |', '|---|' + '---|' * len(MEASURES)]
    lines += [f'| {row} | {" | ".join(f"{found[key]:.1f}" for key in MEASURES)} |' for row, found in recall.items()]
    atomic_write_text(folder / 'boxes.md', '\n'.join(lines) + '\n')
    return '\n'.join([*lines, '', f'Now: odis-mm compare {folder / "plan.yaml"}'])


def _scored(content: dict) -> dict:
    """Boxes without scores, in an order that tells nothing of how good they are."""
    return {**content, 'annotations': [{'score': 1.0, **entry} for entry in content['annotations']]}


if __name__ == '__main__':
    main()
