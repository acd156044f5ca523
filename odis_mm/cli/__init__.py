"""Every command line: ``odis-mm COMMAND ...`` or ``python -m odis_mm COMMAND ...``.

A command's module is imported when the command is called, and needs nothing but Python until the command has work to do
(:func:`odis_mm.cli.common.run`).
"""

import sys
from importlib import import_module
from typing import Dict, List, NamedTuple, Optional

from ..utils.errors import USER_ERROR, nearest


class Command(NamedTuple):
    """Where a command's function is, and its line in the list of ``odis-mm --help``."""

    module: str
    function: str
    help: str


COMMANDS: Dict[str, Command] = {
    'pretrain': Command('odis_mm.cli.tasks', 'pretrain_main', 'pretrain a backbone on a folder of images'),
    'finetune': Command('odis_mm.cli.tasks', 'finetune_main', 'train a detector on annotated images'),
    'predict': Command('odis_mm.cli.tasks', 'predict_main', 'run a detector on images: pictures and a COCO-style json'),
    'views': Command('odis_mm.cli.tasks', 'views_main', 'draw the views that a config makes of images'),
    'train': Command('odis_mm.cli.train', 'train_main', 'pretrain a backbone or train a detector, by a config'),
    'test': Command('odis_mm.cli.train', 'test_main', 'evaluate a detector: COCO AP'),
    'compare': Command('odis_mm.cli.compare', 'main', 'which start helps the detector, on your own data'),
    'transfer': Command(
        'odis_mm.cli.checkpoints', 'transfer_main', "bring a checkpoint's ViT into another library's layout"
    ),
    'knn': Command('odis_mm.cli.checkpoints', 'knn_main', 'k-NN accuracy of frozen features on a labelled folder'),
    'regions': Command(
        'odis_mm.cli.checkpoints', 'regions_main', 'a proxy for detection from frozen features of objects'
    ),
    'features': Command('odis_mm.cli.checkpoints', 'features_main', 'objects of a data set as vectors'),
    'rotation': Command(
        'odis_mm.cli.rotation', 'rotation_main', "accuracy of GTSA's rotation classifier on unseen images"
    ),
    'find-objects': Command(
        'odis_mm.cli.objects', 'find_objects_main', 'find objects in images, or import them from other tools'
    ),
    'inspect': Command(
        'odis_mm.cli.objects', 'inspect_main', 'draw what a recipe makes of images and check it against pixels'
    ),
    'verify': Command('odis_mm.cli.verify', 'verify_main', 'check every image, box and mask of a data set'),
    'stats': Command('odis_mm.cli.stats', 'stats_main', 'mean and deviation of the channels of a data set'),
    'demo': Command('odis_mm.cli.demo', 'demo_main', 'render the demo set'),
    'replay': Command('odis_mm.cli.replay', 'replay_main', 'rerun a batch whose loss was not finite'),
    'benchmark': Command(
        'odis_mm.cli.benchmarks', 'benchmark_main', 'where the time and memory of a pretraining step go'
    ),
    'doctor': Command('odis_mm.cli.doctor', 'main', 'check this installation'),
}


def main(argv: Optional[List[str]] = None) -> None:
    """Call the command that the first argument names."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in COMMANDS:
        command = COMMANDS[argv[0]]
        getattr(import_module(command.module), command.function)(argv[1:])
        return
    listing = '\n'.join(f'  {name:12s} {command.help}' for name, command in COMMANDS.items())
    usage = f'usage: odis-mm COMMAND ...   (COMMAND --help lists the options of a command)\n\n{listing}'
    if argv and argv[0] in ('-h', '--help'):
        print(usage)
        return
    if argv:
        hint = nearest(argv[0], COMMANDS) or ';'
        print(f'error: no command {argv[0]!r}{hint} odis-mm --help lists the commands.', file=sys.stderr)
    else:
        print(usage, file=sys.stderr)
    sys.exit(USER_ERROR)
