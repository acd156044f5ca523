"""What each loss of ALFM (our reconstruction) contributes: one of them, both, random weights, under one budget on the demo set.

    python -m odis_mm.workflows.alfm_ablation --work-dir work_dirs/alfm_ablation --out docs/alfm_ablation

It is resumable: started again with the same arguments it continues where it stopped.
"""

import argparse
import datetime
import json
import statistics
import sys
from pathlib import Path
from typing import Dict, List, Optional

from ..datasets.demo import ensure_demo
from ..utils.environment import hardware
from ..utils.errors import run_command
from .demo import METHODS, RANDOM, finetune, pretrain
from .stages import AP_KEYS, Stages, scalars, slug

LOSSES = {  # row of the table to the options of its pretraining
    'GMSR only': {'model.lambda_cdlp': 0},
    'CDLP only': {'model.lambda_gmsr': 0},
    'GMSR + CDLP': {},
}


def main(argv: Optional[List[str]] = None) -> None:
    parser = argparse.ArgumentParser(prog='python -m odis_mm.workflows.alfm_ablation', description=__doc__)
    parser.add_argument('--work-dir', default='work_dirs/alfm_ablation')
    parser.add_argument('--out', default='docs/alfm_ablation', help='the table goes here')
    parser.add_argument('--data-root', default='data/odis_demo', help='the demo set is rendered beside it')
    parser.add_argument('--train-images', type=int, default=2000, help='rendered images of the demo set')
    parser.add_argument('--epochs', type=int, default=30, help='of each pretraining')
    parser.add_argument('--finetune-iters', type=int, default=600, help='iterations of the detector, 8 images each')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1], help='of the detector')
    args = parser.parse_args(argv)

    stages = Stages(args.work_dir, total=len(LOSSES) + (len(LOSSES) + 1) * len(args.seeds))
    root = Path(ensure_demo(args.data_root, num_train=args.train_images)).resolve()
    exports: Dict[str, Optional[Path]] = {RANDOM: None}
    last = {}
    for row, options in LOSSES.items():
        exports[row] = pretrain(stages, f'pretrain_{slug(row)}', METHODS['ALFM'], root, args.epochs, options)
        last[row] = scalars(exports[row].parent)[-1]
    rows = [*LOSSES, RANDOM]
    ap: Dict[str, List[dict]] = {row: [] for row in rows}
    for seed in args.seeds:
        for row in rows:
            ap[row].append(
                finetune(stages, f'detector_{slug(row)}_seed{seed}', root, exports[row], args.finetune_iters, seed)
            )
    text = report(ap, last, args, argv)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / 'alfm_ablation.md').write_text(text)
    (out / 'alfm_ablation.json').write_text(
        json.dumps(dict(detector=ap, pretraining=last, settings=vars(args)), indent=1)
    )
    print(text)


def report(
    ap: Dict[str, List[dict]], last: Dict[str, dict], args: argparse.Namespace, argv: Optional[List[str]]
) -> str:
    """The table as Markdown.

    Args:
        ap: Row to its detectors' AP in percent, one dict a seed.
        last: Row to the last scalars of its pretraining, for the columns that show what the losses came to and whether the embeddings
            kept their rank.
    """
    lines = [
        '# What the losses of ALFM (our reconstruction) contribute',
        '',
        f'Command: `{" ".join(["python -m odis_mm.workflows.alfm_ablation", *(sys.argv[1:] if argv is None else argv)])}`',
        '',
        f'{datetime.date.today().isoformat()}; {hardware()}. Pretraining: {args.epochs} epochs of {args.train_images} images of the '
        f'embedded demo set. Detector: the demo Mask R-CNN, {args.finetune_iters} iterations of 8 images, the same for all rows, all weights '
        f'trained; mean over {len(args.seeds)} seed(s), each value in parentheses. A demonstration budget on rendered images: it does not '
        'predict COCO.',
        '',
        '| pretraining | ' + ' | '.join(AP_KEYS) + ' | L_GMSR | L_CDLP | effective rank |',
        '|---|' + '---|' * (len(AP_KEYS) + 3),
    ]
    for row, runs in ap.items():
        cells = [
            f'{statistics.mean(r[key] for r in runs):.1f} ({", ".join(f"{r[key]:.1f}" for r in runs)})'
            for key in AP_KEYS
        ]
        for key in ('loss_gmsr', 'loss_cdlp', 'effective_rank'):
            value = last.get(row, {}).get(key)
            cells.append('-' if value is None else f'{value:.2f}')
        lines.append(f'| {row} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines) + '\n'


if __name__ == '__main__':
    run_command(main)
