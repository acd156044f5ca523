"""Does the proxy predict detection? Checkpoints of different quality, their frozen measures, and the AP of a detector fine-tuned from each.

    python -m odis_mm.workflows.proxy --work-dir work_dirs/proxy --out docs/benchmarks --knn-root DIR

Every method is pretrained on the embedded demo set, with the proxy measured as it goes (``RegionProxyHook``); checkpoints on the way and
random weights are measured and fine-tuned. It is resumable: started again with the same arguments it continues where it stopped.
"""

import argparse
import datetime
import functools
import json
import multiprocessing
import os
import shlex
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Union

import numpy as np

from ..datasets.demo import ensure_demo
from ..evaluation import FrozenBackbone, RegionImages, knn_images, labelled_split, region_proxy
from ..utils.environment import hardware
from ..utils.errors import run_command
from .demo import METHODS, RANDOM, SIZE, demo_objects, finetune, load_teacher, warmup_options
from .stages import Stages, slug

PROXIES = ('object_token', 'box_pool', 'object_auc', 'mask_miou')


@dataclass(frozen=True)
class Row:
    """A checkpoint of the table: ``label`` for the eye, ``name`` for its folders; ``export`` is None for random weights."""

    label: str
    name: str
    config: str
    export: Optional[Path]


@dataclass(frozen=True)
class Pretraining:
    """A method, its config, and how long and with which seed it is to be trained."""

    method: str
    config: str
    epochs: int
    seed: int


def main(argv: Optional[List[str]] = None) -> None:
    parser = argparse.ArgumentParser(prog='python -m odis_mm.workflows.proxy', description=__doc__)
    parser.add_argument('--work-dir', default='work_dirs/proxy')
    parser.add_argument('--out', default='docs/benchmarks', help='the table goes here')
    parser.add_argument('--data-root', default='data/odis_demo', help='the demo set is rendered beside it')
    parser.add_argument('--train-images', type=int, default=4000, help='rendered images of the demo set')
    parser.add_argument(
        '--methods',
        nargs='+',
        default=list(METHODS),
        metavar='METHOD[:EPOCHS]',
        help=f'of {", ".join(METHODS)}; a length of its own for a method whose epochs take longer',
    )
    parser.add_argument('--epochs', type=int, default=24, help='of each pretraining')
    parser.add_argument('--checkpoints', type=int, default=2, help='of each pretraining, evenly spread over its epochs')
    parser.add_argument('--pretrain-seeds', type=int, nargs='+', default=[0, 1])
    parser.add_argument('--finetune-iters', type=int, default=600, help='iterations of the detector, 8 images each')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0], help='of the detector')
    parser.add_argument(
        '--knn-root', help='labelled folder (train/<class>/, val/<class>/) for k-NN on whole images beside the proxy'
    )
    parser.add_argument(
        '--exports',
        nargs='+',
        default=[],
        metavar='LABEL=CONFIG:FILE',
        help='rows for backbones that are there already, such as "DINO, epoch 30=dino_demo:epoch_30_backbone.pth"',
    )
    parser.add_argument(
        '--jobs',
        type=int,
        default=1,
        help='so many pretrainings, each with all that follows from it, at a time; the cores are shared out among them',
    )
    args = parser.parse_args(argv)
    lengths = {}
    for part in args.methods:
        method, _, epochs = part.partition(':')
        if method not in METHODS or (epochs and not epochs.isdigit()):
            parser.error(f'--methods {part}: METHOD or METHOD:EPOCHS, METHOD one of {", ".join(METHODS)}.')
        lengths[method] = int(epochs or args.epochs)
        if lengths[method] % args.checkpoints or not lengths[method]:
            parser.error(
                f'{method}: its {lengths[method]} epochs must be a multiple of --checkpoints {args.checkpoints}.'
            )

    runs: List[Union[Row, Pretraining]] = [Row(RANDOM, 'random', METHODS[next(iter(lengths))], None)]
    for part in args.exports:
        label, _, rest = part.partition('=')
        config, _, file = rest.partition(':')
        if not Path(file).is_file():
            parser.error(f'--exports {part}: LABEL=CONFIG:FILE, FILE an exported backbone; there is no file {file!r}.')
        if slug(label) in ('', *(run.name for run in runs)):
            parser.error(f'--exports {part}: the label is empty, or names the folder of another row.')
        runs.append(Row(label, slug(label), config, Path(file)))
    runs += [
        Pretraining(method, METHODS[method], epochs, seed)
        for method, epochs in lengths.items()
        for seed in args.pretrain_seeds
    ]
    trained = sum(isinstance(run, Pretraining) for run in runs)
    rows = len(runs) + trained * (args.checkpoints - 1)
    stages = Stages(args.work_dir, total=trained + rows * (1 + len(args.seeds)))
    root = Path(ensure_demo(args.data_root, num_train=args.train_images)).resolve()
    work = functools.partial(chain, stages, root=root, args=args)
    if args.jobs == 1:
        found = [work(run) for run in runs]
    else:
        os.environ.setdefault('OMP_NUM_THREADS', str(max((os.cpu_count() or 1) // args.jobs, 1)))
        with ProcessPoolExecutor(args.jobs, multiprocessing.get_context('spawn')) as pool:
            try:
                found = list(pool.map(work, runs))
            except BaseException:
                pool.shutdown(cancel_futures=True)  # what runs now is finished and kept
                raise
    frozen, ap, curves = {}, {}, {}
    for run, (measured, detectors, curve) in zip(runs, found):
        frozen.update(measured)
        ap.update(detectors)
        if isinstance(run, Pretraining):
            curves.setdefault(run.method, []).append(curve)
    text = report(frozen, ap, curves, args, argv)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / 'proxy_demo.md').write_text(text)
    (out / 'proxy_demo.json').write_text(
        json.dumps(dict(frozen=frozen, detector=ap, curves=curves, settings=vars(args)), indent=1)
    )
    print(text)


def chain(stages: Stages, run: Union[Row, Pretraining], root: Path, args: argparse.Namespace) -> tuple:
    """All that is measured from a checkpoint, or from those of a pretraining, which is done first.

    Returns:
        By row the frozen measures, by row the detectors' APs, and what the hook recorded (None for a checkpoint).
    """
    rows, curve = [run], None
    if isinstance(run, Pretraining):
        name = f'{run.method.lower()}_seed{run.seed}'
        pretrained = pretrain_measured(
            stages, f'pretrain_{name}', run.config, root, run.epochs, args.checkpoints, run.seed
        )
        curve = pretrained['regions']
        rows = [
            Row(f'{run.method}, epoch {epoch}, seed {run.seed}', f'{name}_epoch{epoch}', run.config, Path(path))
            for epoch, path in pretrained['exports'].items()
        ]
    frozen = {row.label: measure(stages, row, root, args.knn_root) for row in rows}
    ap = {
        row.label: [
            finetune(stages, f'detector_{row.name}_seed{s}', root, row.export, args.finetune_iters, s)
            for s in args.seeds
        ]
        for row in rows
    }
    return frozen, ap, curve


def pretrain_measured(
    stages: Stages, name: str, config: str, root: Path, epochs: int, checkpoints: int, seed: int
) -> dict:
    """Pretrains with the proxy's hook; returns ``exports`` {epoch: file} and ``regions``, what the hook recorded."""
    step = epochs // checkpoints
    options = {
        'train_cfg.max_epochs': epochs,
        'randomness.seed': seed,
        'train_dataloader.dataset.seed': seed,
        'default_hooks.checkpoint.interval': step,
        'default_hooks.checkpoint.max_keep_ckpts': -1,
        '+default_hooks.regions.type': 'RegionProxyHook',
        '+default_hooks.regions.data_root': root,
        '+default_hooks.regions.sizes': f'[{SIZE}]',
        '+default_hooks.regions.max_images': '[400,200]',
        '+default_hooks.regions.interval': max(step // 2, 1),
        '+default_hooks.regions.num_workers': 0,
        **warmup_options(config, epochs, 'epochs of pretraining'),
    }

    def work(folder: Path) -> dict:
        stages.train(config, folder, options, env={'ODIS_DEMO_ROOT': str(root)})
        exports = {epoch: str(folder / f'epoch_{epoch}_backbone.pth') for epoch in range(step, epochs + 1, step)}
        return dict(exports=exports, regions=json.loads((folder / 'regions.json').read_text()))

    return stages.run(
        name, dict(config=config, root=str(root), epochs=epochs, checkpoints=checkpoints, seed=seed), work
    )


def measure(stages: Stages, row: Row, root: Path, knn_root: Optional[str]) -> dict:
    """The proxy on the demo set, and 20-NN on a labelled folder of whole images if there is one."""

    def work(folder: Path) -> dict:
        backbone, preprocessor = load_teacher(row.config, row.export)
        frozen = FrozenBackbone(backbone, preprocessor.mean, preprocessor.std)
        train, val = (
            RegionImages(demo_objects(root, part), (SIZE,), frozen.patch, most)
            for part, most in (('train', 400), ('val', 200))
        )
        found = region_proxy(frozen, train, val)
        if knn_root:
            images = knn_images(frozen, *labelled_split(knn_root, frozen, SIZE, most=(2000, 1000)), ks=(20,))
            found.update({f'image k-NN {feature}': accuracy[20] for feature, accuracy in images.items()})
        return found

    return stages.run(
        f'frozen_{row.name}', dict(config=row.config, root=str(root), export=str(row.export), knn_root=knn_root), work
    )


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Rank correlation, equal values sharing their mean rank; NaN if one side does not vary."""
    ranks = []
    for values in (np.asarray(a, float), np.asarray(b, float)):
        ranks.append((values[:, None] > values).sum(1) + ((values[:, None] == values).sum(1) - 1) / 2)
    x, y = (rank - rank.mean() for rank in ranks)
    scale = np.sqrt((x**2).sum() * (y**2).sum())
    return float((x * y).sum() / scale) if scale else float('nan')


def report(
    frozen: Dict[str, dict],
    ap: Dict[str, List[dict]],
    curves: Dict[str, List[dict]],
    args: argparse.Namespace,
    argv: Optional[List[str]],
) -> str:
    """The table as Markdown, rank correlations, and what each method's curve says, in words that follow from the numbers."""
    rows = sorted(frozen, key=lambda row: -statistics.mean(r['box AP'] for r in ap[row]))
    columns = [key for key in frozen[rows[0]] if key != 'minutes' and all(key in frozen[row] for row in rows)]
    box = [statistics.mean(r['box AP'] for r in ap[row]) for row in rows]
    lines = [
        '# Does the proxy predict detection? On the embedded demo set',
        '',
        f'Command: `python -m odis_mm.workflows.proxy {shlex.join(sys.argv[1:] if argv is None else argv)}`',
        '',
        f'{datetime.date.today().isoformat()}; {hardware()}; {args.jobs} at a time. Pretraining on {args.train_images} images, '
        f'{args.epochs} epochs unless named ({", ".join(args.methods)}), {len(args.pretrain_seeds)} seed(s), {args.checkpoints} '
        'checkpoints of each; rows without a seed are of trainings apart from these. Detector: the demo Mask R-CNN, '
        f'{args.finetune_iters} iterations of 8 images, {len(args.seeds)} seed(s), all weights trained. Frozen measures in percent: '
        'class accuracy of regions by 20 neighbours ([OBJ] token, pooled box), area under the ROC curve of objects against background, '
        'mean IoU of a linear mask; '
        'image k-NN: 20 neighbours on whole images of a labelled folder. Rendered images and a demonstration budget: it compares, it does '
        'not predict COCO.',
        '',
        '| weights | ' + ' | '.join(columns) + ' | box AP | mask AP |',
        '|---|' + '---|' * (len(columns) + 2),
    ]
    for row, value in zip(rows, box):
        mask = statistics.mean(r['mask AP'] for r in ap[row])
        lines.append(
            f'| {row} | ' + ' | '.join(f'{frozen[row][key]:.1f}' for key in columns) + f' | {value:.1f} | {mask:.1f} |'
        )
    correlation = [spearman([frozen[row][key] for row in rows], box) for key in columns]
    lines += [
        f'| **rank correlation with box AP** (n = {len(rows)}) | '
        + ' | '.join(f'{value:+.2f}' for value in correlation)
        + ' | | |',
        '',
        'Over pretraining, last value against random weights:',
        '',
    ]
    lines += [
        _rise(method, key, records)
        for method, records in curves.items()
        for key in PROXIES
        if key in records[0]['history'][-1]
    ]
    return '\n'.join(lines) + '\n'


def _rise(method: str, key: str, records: List[dict]) -> str:
    """A rise counts as borne out when two seeds or more all end above the random value by more than they differ from each other."""
    gains = [record['history'][-1][key] - record['random'][key] for record in records]
    spread = max(gains) - min(gains)
    if len(gains) > 1 and min(gains) > spread:
        verdict = 'above random weights in every seed, by more than the seeds differ'
    elif min(gains) > 0:
        verdict = 'above random weights' + (
            ' in every seed, by less than the seeds differ' if len(gains) > 1 else ', with one seed'
        )
    else:
        verdict = 'NOT above random weights in every seed'
    return f'- {method}, {key}: {", ".join(f"{gain:+.1f}" for gain in gains)} ({verdict}).'


if __name__ == '__main__':
    run_command(main)
