"""What objects are worth to ODIS: the same pretraining with better and worse boxes, on the embedded demo set.

    python -m odis_mm.workflows.worth --work-dir work_dirs/worth --out docs/evidence

Started again with the same arguments it continues where it stopped; ``--rows`` does some of the rows, and the table is written from all
that are done.
"""

import argparse
import datetime
import json
import statistics
import sys
from pathlib import Path
from typing import Dict, List, Optional

from ..datasets.demo import ensure_demo
from ..objects import Attention, Classic, degrade, find_objects, recall_of
from ..objects.recall import read_result
from ..utils.environment import hardware
from ..utils.errors import run_command
from .demo import METHODS, finetune, frozen_measure, pretrain
from .stages import Stages, slug

_SAMPLE = 'train_dataloader.dataset.pipeline.1.'
DEGRADED = {
    'boxes at IoU 0.9': dict(iou=0.9),
    'boxes at IoU 0.7': dict(iou=0.7),
    'boxes at IoU 0.5': dict(iou=0.5),
    '30 % missing': dict(missing=0.3),
    '60 % missing': dict(missing=0.6),
    '30 % false': dict(false=0.3),
    '60 % false': dict(false=0.6),
}
VARIANTS = {  # with annotated boxes
    'cropping only': {'model.masked_attention': False},
    'masking only': {_SAMPLE + 'object_aware': False},
    'whole image': {_SAMPLE + 'target_rule': 'whole_image'},
}
FOUND = ('attention', 'classic', 'bootstrapped')
ROWS = ('annotated boxes', *DEGRADED, *FOUND, *VARIANTS)


def main(argv: Optional[List[str]] = None) -> None:
    parser = argparse.ArgumentParser(prog='python -m odis_mm.workflows.worth', description=__doc__)
    parser.add_argument('--work-dir', default='work_dirs/worth')
    parser.add_argument('--out', default='docs/evidence', help='the table goes here')
    parser.add_argument('--data-root', default='data/odis_demo')
    parser.add_argument('--train-images', type=int, default=4000)
    parser.add_argument('--epochs', type=int, default=30, help='of every pretraining, the teacher included')
    parser.add_argument('--finetune-iters', type=int, default=300)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1], help='of pretraining and detector')
    parser.add_argument('--teacher', default='GTSA', choices=('GTSA', 'ALFM'), help='of the row attention')
    parser.add_argument(
        '--rows', nargs='+', default=list(ROWS), choices=ROWS, metavar='ROW', help=f'of: {", ".join(ROWS)}'
    )
    args = parser.parse_args(argv)
    run_command(lambda: print(_run(args, sys.argv[1:] if argv is None else argv)))


def _run(args: argparse.Namespace, argv: List[str]) -> str:
    stages = Stages(args.work_dir, total=3 * len(args.seeds) * len(args.rows) + 1)
    root = Path(ensure_demo(args.data_root, num_train=args.train_images)).resolve()
    truth_file = root / 'annotations' / 'instances_train2017.json'
    truth = read_result(truth_file)
    results: Dict[str, List[dict]] = {}
    for row in args.rows:
        for seed in args.seeds:
            boxes = _boxes(stages, row, seed, root, truth, args)
            options = {'randomness.seed': seed, **VARIANTS.get(row, {})}
            if boxes != truth_file:
                options['train_dataloader.dataset.ann_file'] = str(boxes)
            name = f'{slug(row)}_seed{seed}'
            export = pretrain(stages, f'pretrain_{name}', METHODS['ODIS'], root, args.epochs, options)
            result = dict(
                frozen=frozen_measure(stages, f'frozen_{name}', METHODS['ODIS'], root, export),
                ap=finetune(stages, f'detector_{name}', root, export, args.finetune_iters, seed),
                recall=None if row in VARIANTS else recall_of(_scored(read_result(boxes)), truth),
            )
            results.setdefault(row, []).append(result)
            _keep(Path(args.work_dir) / 'rows' / f'{name}.json', dict(row=row, seed=seed, **result))
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    every = _kept(Path(args.work_dir) / 'rows')
    text = report(every, args, argv)
    (out / 'objects_worth.md').write_text(text)
    (out / 'objects_worth.json').write_text(json.dumps(every, indent=1))
    return text


def _boxes(stages: Stages, row: str, seed: int, root: Path, truth: dict, args: argparse.Namespace) -> Path:
    """The annotation file of a row."""
    images = root / 'train2017'
    if row in DEGRADED:

        def make(folder: Path) -> dict:
            (folder / 'objects.json').write_text(json.dumps(degrade(truth, **DEGRADED[row], seed=seed)))
            return dict(objects=str(folder / 'objects.json'))

        return Path(
            stages.run(f'boxes_{slug(row)}_seed{seed}', dict(row=row, seed=seed, **DEGRADED[row]), make)['objects']
        )
    if row not in FOUND:
        return root / 'annotations' / 'instances_train2017.json'
    if row == 'classic':
        name, source = 'boxes_classic', Classic(top=10)
    else:
        teacher = pretrain(
            stages, f'teacher_seed{seed}', METHODS[args.teacher], root, args.epochs, {'randomness.seed': seed}
        )
        if row == 'bootstrapped':  # the teacher of ODIS with the first teacher's objects searches again
            first = _boxes(stages, 'attention', seed, root, truth, args)
            options = {'randomness.seed': seed, 'train_dataloader.dataset.ann_file': str(first)}
            teacher = pretrain(stages, f'pretrain_attention_seed{seed}', METHODS['ODIS'], root, args.epochs, options)
        name, source = f'boxes_{row}_seed{seed}', Attention(str(teacher), size=128, seed=seed)

    def search(folder: Path) -> dict:
        find_objects(images, folder / 'objects.json', source, say=stages.say)
        return dict(objects=str(folder / 'objects.json'))

    return Path(stages.run(name, dict(row=row, source=source.name, root=str(root)), search)['objects'])


def _scored(content: dict) -> dict:
    return {**content, 'annotations': [{'score': 1.0, **entry} for entry in content['annotations']]}


def _keep(path: Path, result: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result))


def _kept(folder: Path) -> Dict[str, List[dict]]:
    found = [json.loads(path.read_text()) for path in sorted(folder.glob('*.json'))]
    return {
        row: [entry for entry in found if entry['row'] == row]
        for row in ROWS
        if any(entry['row'] == row for entry in found)
    }


def report(results: Dict[str, List[dict]], args: argparse.Namespace, argv: List[str]) -> str:
    """The table as Markdown, and in words what follows from it."""
    lines = [
        '# What objects are worth to ODIS, on the embedded demo set',
        '',
        f'Command: `{" ".join(["python -m odis_mm.workflows.worth", *argv])}`',
        '',
        f'{datetime.date.today().isoformat()}; {hardware()}. ODIS, {args.epochs} epochs of {args.train_images} images in every row, then the '
        f'demo Mask R-CNN, {args.finetune_iters} iterations of 8 images; each value is the mean over seeds of pretraining and detector, with all of them. '
        'AR and precision: of the boxes against the annotated ones, at IoU 0.5.',
        '',
        '| boxes | AR@10 | precision@10 | frozen: [OBJ], 20-NN | box AP |',
        '|---|---|---|---|---|',
    ]
    for row, entries in results.items():
        recall = [entry['recall'] for entry in entries if entry['recall']]
        quality = [
            f'{statistics.mean(r[key] for r in recall):.1f}' if recall else '-'
            for key in ('AR@10 IoU 0.5', 'precision@10')
        ]
        frozen = [entry['frozen']['object_token'] for entry in entries]
        ap = [entry['ap']['box AP'] for entry in entries]
        cells = [f'{statistics.mean(v):.1f} ({", ".join(f"{x:.1f}" for x in v)})' for v in (frozen, ap)]
        lines.append(f'| {row} | {" | ".join(quality + cells)} |')
    first = results.get('annotated boxes')
    if first:
        lines += ['', 'Against annotated boxes:', '']
        base = [entry['ap']['box AP'] for entry in first]
        for row, entries in results.items():
            ap = [entry['ap']['box AP'] for entry in entries]
            if row == 'annotated boxes':
                continue
            below, above = max(ap) < min(base), min(ap) > max(base)
            verdict = (
                'every seed below'
                if below
                else 'every seed above'
                if above
                else 'the seeds overlap: no difference shown'
            )
            lines.append(f'- {row}: box AP {statistics.mean(ap) - statistics.mean(base):+.1f} ({verdict}).')
    return '\n'.join(lines) + '\n'


if __name__ == '__main__':
    main()
