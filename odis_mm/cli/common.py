"""What the command lines share: the options of configs."""

import argparse


def config_parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description, epilog='ODIS_MM_DEBUG=1 in the environment shows the full traceback of an error.'
    )
    parser.add_argument('config', help='path of a config, or name of a shipped one such as odis_vits_coco')
    parser.add_argument(
        '--work-dir', help='logs, checkpoints and the resolved config go here (default: work_dirs/<config>)'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        default=[],
        metavar='KEY=VALUE',
        action='extend',
        help='e.g. train_dataloader.batch_size=8; +KEY=VALUE adds a key that the config does not know',
    )
    parser.add_argument(
        '--launcher', choices=('none', 'pytorch', 'slurm', 'mpi'), default='none', help='pytorch: started by torchrun'
    )
    # older launchers pass it; torchrun sets LOCAL_RANK
    parser.add_argument('--local-rank', '--local_rank', type=int, help=argparse.SUPPRESS)
    return parser
