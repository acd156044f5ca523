"""The main job end to end on the embedded demo set: pretrain, transfer, fine-tune, COCO AP, one picture.

python -m odis_mm.workflows.quickstart --work-dir work_dirs/quickstart
"""

import argparse
import datetime
from pathlib import Path
from typing import List, Optional

from ..datasets.demo import ensure_demo
from ..utils.environment import hardware
from ..utils.errors import StageError, run_command
from .demo import METHODS, RANDOM, finetune, pretrain
from .stages import Stages

# rendered images and epochs of pretraining: six to ten minutes each on two cores
BUDGETS = {'ODIS': (4000, 30), 'iBOT': (4000, 30), 'DINO': (4000, 30), 'GTSA': (2000, 16), 'ALFM': (2000, 16)}


def main(argv: Optional[List[str]] = None) -> None:
    parser = argparse.ArgumentParser(prog='python -m odis_mm.workflows.quickstart', description=__doc__)
    parser.add_argument('--method', default='odis', choices=[label.lower() for label in METHODS])
    parser.add_argument('--work-dir', default='work_dirs/quickstart')
    parser.add_argument('--data-root', default='data/odis_demo')
    parser.add_argument(
        '--epochs',
        type=int,
        help='of pretraining; default: ' + ', '.join(f'{n} for {label}' for label, (_, n) in BUDGETS.items()),
    )
    parser.add_argument('--finetune-iters', type=int, default=300, help='of the detector, 8 images each')
    args = parser.parse_args(argv)
    label = next(name for name in METHODS if name.lower() == args.method)
    images, epochs = BUDGETS[label]
    config, epochs = METHODS[label], epochs if args.epochs is None else args.epochs

    stages = Stages(Path(args.work_dir) / args.method, total=3)
    root = Path(ensure_demo(args.data_root, num_train=images)).resolve()
    export = pretrain(stages, 'pretrain', config, root, epochs)
    ap = {
        label: finetune(stages, 'detector_pretrained', root, export, args.finetune_iters, seed=0),
        RANDOM: finetune(stages, 'detector_random', root, None, args.finetune_iters, seed=0),
    }
    picture = stages.work_dir / 'quickstart.png'
    from .picture import draw  # matplotlib and mmdet, only now

    draw(picture, config, export, root, stages.work_dir)

    names = list(next(iter(ap.values())))
    names.remove('minutes')
    table = [f'| weights of the backbone | {" | ".join(names)} |', '|---|' + '---|' * len(names)]
    table += [f'| {row} | ' + ' | '.join(f'{values[n]:.1f}' for n in names) + ' |' for row, values in ap.items()]
    matched = stages.work_dir / 'detector_pretrained'
    text = '\n'.join(
        [
            '',
            f"COCO AP on the demo set's val images, the same Mask R-CNN and schedule ({args.finetune_iters} iterations of 8 images) twice:",
            '',
            *table,
            '',
            f'Transfer: {transfer_line(matched)}',
            f'Picture: {picture}',
            f'{datetime.date.today().isoformat()}; {hardware()}.',
            "This budget is a demonstration's: one seed, minutes of pretraining. `python -m odis_mm.workflows.evidence` runs the longer comparison.",
        ]
    )
    print(text, flush=True)
    (stages.work_dir / 'quickstart.md').write_text(text + '\n')


def transfer_line(folder: Path) -> str:
    """What the detector's log says that the export matched.

    Raises:
        RuntimeError: if the log says nothing: the weights may not have arrived.
    """
    for log in sorted(folder.glob('*/*.log'), reverse=True):
        for line in log.read_text(errors='replace').splitlines():
            if 'backbone <- ' in line and ' matched' in line:
                return line.split(' - ')[-1]
    raise StageError(f'no line about matched tensors in the logs of {folder}: the pretrained weights did not arrive.')


if __name__ == '__main__':
    run_command(main)
