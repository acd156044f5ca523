"""``odis-mm compare``: which start helps a detector, on one's own data."""

import shlex
import sys
from pathlib import Path
from typing import List, Optional

from ..utils.parser import Parser, at_least
from ..utils.paths import check_checkpoint, check_config_name, check_data, check_out
from .common import run


def main(argv: Optional[List[str]] = None) -> None:
    """Parse arguments and call :func:`odis_mm.workflows.run.compare` or :func:`~odis_mm.workflows.run.compare_data`."""
    parser = Parser(
        prog='odis-mm compare',
        description='Train the same detector from several starts (random weights, files, pretrainings) with several '
        'amounts of labels and '
        'seeds, and report what helps, by how much, and how sure that is. It resumes where it stopped.',
        epilog='The report is WORK_DIR/report.html and report.md. ODIS_MM_DEBUG=1 in the environment shows the full '
        'traceback of an error.',
    )
    parser.add_argument(
        'plan', nargs='?', help='a YAML file, or the name of a plan that comes with odis_mm, such as quickstart'
    )
    parser.add_argument(
        '--data',
        metavar='DIR',
        help='write a plan for these annotated images (COCO style, YOLO, Pascal VOC, ...) and carry it out',
    )
    parser.add_argument(
        '--minutes', type=float, help='with --data: how long all of it may take on this machine (default 60)'
    )
    parser.add_argument('--recipes', nargs='+', metavar='CONFIG', help='with --data: pretrainings to compare')
    parser.add_argument('--init', nargs='+', default=[], metavar='FILE', help='with --data: weights to compare, too')
    parser.add_argument(
        '--duplicates',
        choices=('refuse', 'drop', 'allow'),
        help='images that are both trained on and evaluated: refuse to run (default), leave them out of the training, '
        'or go on',
    )
    parser.add_argument('--work-dir', help='default: work_dirs/compare/NAME')
    parser.add_argument('--starts', nargs='+', metavar='NAME', help='of the plan, these and its baseline alone')
    parser.add_argument(
        '--set', nargs='+', default=[], metavar='KEY=VALUE', action='extend', help='change the plan: seeds.detector=3'
    )
    parser.add_argument(
        '--jobs',
        type=at_least(1),
        help='stages at a time (default: one per GPU, or per core, at most eight, without GPUs)',
    )
    parser.add_argument(
        '--run-with',
        metavar='WORDS',
        help="words before each command, such as 'srun --partition=gpu --gres=gpu:1 --cpus-per-task=8'",
    )
    parser.add_argument(
        '--dry-run',
        action='store_true',
        help='measure the speed (trainings of some steps, about half a minute each on a CPU), tell the stages and how '
        'long they take, and stop',
    )
    args = parser.parse_args(argv)
    if (args.plan is None) == (args.data is None):
        parser.error('name a plan, or a data set with --data.')
    if args.data is not None and args.starts:
        parser.error('--starts is for a plan: with --data, name the pretrainings by --recipes and weights by --init.')
    for name in ('minutes', 'recipes', 'init') if args.data is None else ():  # a plan says them
        if getattr(args, name) not in (None, []):
            parser.error(f'--{name} is for --data: with a plan, change the plan (the file, or by --set KEY=VALUE).')
    command = shlex.join(['odis-mm', 'compare', *(sys.argv[2:] if argv is None else argv)])

    def check() -> None:
        if args.data is not None:
            check_data(args.data)
        else:
            check_config_name(args.plan)
        for file in args.init:
            check_checkpoint(file)
        if args.work_dir is not None:
            check_out(args.work_dir, folder=True, argument='--work-dir')

    def work() -> None:
        from ..workflows.run import compare, compare_data

        minutes = 60 if args.minutes is None else args.minutes
        common = dict(
            work_dir=args.work_dir,
            changes=args.set,
            jobs=args.jobs,
            prefix=shlex.split(args.run_with or ''),
            dry_run=args.dry_run,
            duplicates=args.duplicates,
            command=command,
        )
        if args.data is not None:
            compare_data(Path(args.data), minutes, recipes=args.recipes, files=args.init, **common)
        else:
            compare(args.plan, starts=args.starts, **common)

    run(work, check)
