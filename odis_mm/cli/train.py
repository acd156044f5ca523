"""Training and testing by a config: ``odis-mm train CONFIG``, ``odis-mm test CONFIG CHECKPOINT``."""

import os
from typing import List, Optional

from ..utils.errors import ConfigError
from ..utils.paths import check_checkpoint, find_config
from .common import AMP, config_parser, run


def train_main(argv: Optional[List[str]] = None) -> None:
    """Parses arguments and calls :func:`odis_mm.apis.train`; exits with 2 and one sentence if the input is wrong."""
    parser = config_parser('train', 'Pretrain a backbone or train a detector, by the config.')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='latest',
        metavar='CHECKPOINT',
        help='continue from a file, or from the newest checkpoint of a folder; alone: of the work dir; auto: of the '
        'work dir if it has one, '
        'else from the beginning',
    )
    parser.add_argument(
        '--init',
        metavar='FILE',
        help='start the backbone, student and teacher alike, from a file of any layout that odis-mm transfer reads',
    )
    parser.add_argument(
        '--amp', nargs='?', const=True, choices=AMP, help='mixed precision (default: bf16; detectors: fp16, on GPUs)'
    )
    args = parser.parse_args(argv)

    def check() -> None:
        find_config(args.config)
        if args.init is not None:
            check_checkpoint(args.init)
        if args.resume not in (None, 'auto', 'latest') and not os.path.isdir(args.resume):
            check_checkpoint(args.resume)

    def work() -> None:
        from .. import apis
        from ..config import parse_options

        apis.train(
            args.config,
            work_dir=args.work_dir,
            resume=args.resume,
            init=args.init,
            amp=args.amp,
            options=parse_options(args.cfg_options),
            launcher=args.launcher,
        )

    run(work, check)


def test_main(argv: Optional[List[str]] = None) -> None:
    """Parses arguments and calls :func:`odis_mm.apis.test`."""
    parser = config_parser('test', 'Evaluate a checkpoint by the test set and metric of the config.')
    parser.add_argument('checkpoint', help='epoch_N.pth of a run of this config')
    parser.add_argument(
        '--show-dir', metavar='DIR', help='draw the predictions beside the annotations into this folder'
    )
    args = parser.parse_args(argv)

    def work() -> None:
        from .. import apis
        from ..config import load_config, parse_options

        shown = {}
        if args.show_dir:
            if 'visualization' not in load_config(args.config).default_hooks:
                raise ConfigError(f'{args.config} has no hook that draws predictions: --show-dir is for detectors.')
            # added, as the class of the hook is not known before mmdet is imported
            shown['+default_hooks.visualization.draw'] = True
            shown['+default_hooks.visualization.test_out_dir'] = os.path.abspath(args.show_dir)
        apis.test(
            args.config,
            args.checkpoint,
            work_dir=args.work_dir,
            options={**parse_options(args.cfg_options), **shown},
            launcher=args.launcher,
        )

    def check() -> None:
        find_config(args.config)
        check_checkpoint(args.checkpoint)

    run(work, check)
