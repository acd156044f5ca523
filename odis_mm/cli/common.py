"""What the command lines share: how they begin, and the options of configs.

Modules of commands import at their top what costs nothing. ``--help`` and a wrong path are answered at once; what is to
be done imports torch and OpenMMLab, which takes seconds.
"""

import argparse
from pathlib import Path
from typing import Any, Callable, List, Optional, Sequence

from ..utils.environment import check_device
from ..utils.errors import ConfigError, run_command
from ..utils.files import PathLike
from ..utils.parser import Parser
from ..utils.paths import check_out, check_outside

# names that a help text lists and whose owners take seconds to import; a test compares them
AMP = ('bf16', 'fp16')
METHODS = ('odis', 'gtsa', 'alfm', 'ibot')
LAYOUTS = (
    'odis_mm',
    'mmpretrain',
    'timm',
    'dinov3',
    'timm-dinov3',
    'huggingface',
    'huggingface-dinov2',
    'huggingface-dinov3',
    'detectron2',
    'mmseg',
)
FORMATS = ('coco', 'voc', 'yolo', 'labelme', 'cvat', 'labelstudio', 'openimages', 'sa1b')
PICTURES = ('.png', '.jpg', '.jpeg', '.pdf', '.svg', '.webp', '.tif')  # that matplotlib writes
KS = (10, 20, 100, 200)
DEMO = dict(num_train=2000, num_val=200, size=128, seed=0)
DEMO_ROOT = 'data/odis_demo'


def run(work: Callable[[], Any], check: Callable[[], Any] = lambda: None, out: Optional[PathLike] = None) -> Any:
    """Return ``work()``, after ``check()`` and with everything registered; errors as :func:`run_command` has them.

    Args:
        check: Refuses paths that cannot be used.
        out: The file that ``--out`` names, if one.
    """

    def call() -> Any:
        check()
        if out is not None:
            check_out(out)
        import odis_mm

        odis_mm.register()
        return work()

    return run_command(call)


def check_picture(path: PathLike, argument: str) -> None:
    """Refuse a picture to write whose place takes no files, or whose name has another ending.

    Raises:
        ConfigError: it cannot be written.
    """
    check_out(path, argument=argument)
    if Path(path).suffix.lower() not in PICTURES:
        raise ConfigError(f'{argument} {path}: let its name end in one of {", ".join(PICTURES)}.')


def device_or_best(name: Optional[str]) -> str:
    """Return the device that ``--device`` names, which must be here, or the GPU if there is one."""
    import torch

    if name:
        check_device(name)
    return name or ('cuda' if torch.cuda.is_available() else 'cpu')


def views_datasets(config: str, options: Sequence[str], out: PathLike) -> List[Any]:
    """Return the training data sets of the config of a pretraining, whose views are drawn at ``out``.

    Raises:
        ConfigError: it is that of something else, or the pictures would lie among its images.
    """
    from mmengine.registry import init_default_scope
    from mmpretrain.registry import DATASETS

    from ..config import load_config, parse_options
    from ..datasets import number_draws, object_datasets
    from ..utils.noise import import_quietly

    init_default_scope('mmpretrain')
    cfg = load_config(config, parse_options(options))
    import_quietly('mmpretrain.datasets')
    found = []
    if 'train_dataloader' in cfg and cfg.get('default_scope') != 'mmdet':
        number_draws(cfg.train_dataloader, by_epoch=False)  # as a run does
        found = object_datasets(DATASETS.build(cfg.train_dataloader.dataset))
    if not found:
        raise ConfigError(f'{config} makes no views of its images: name the config of a pretraining.')
    check_outside(out, [dataset.folder for dataset in found if not dataset.ann_file])
    return found


def config_parser(command: str, description: str) -> argparse.ArgumentParser:
    parser = Parser(
        prog=f'odis-mm {command}',
        description=description,
        epilog='ODIS_MM_DEBUG=1 in the environment shows the full traceback of an error.',
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
