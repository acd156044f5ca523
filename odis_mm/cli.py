"""Command line of training and testing: ``python -m odis_mm train CONFIG``, ``tools/train.py``, ``odis-mm-train``."""
import argparse
import errno
import linecache
import os
import re
import sys
import traceback
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

from mmengine.config import DictAction

from . import apis
from .config_check import ConfigError

PACKAGE = str(Path(__file__).resolve().parent)
USER_ERROR = 2


def train_main(argv: Optional[List[str]] = None) -> None:
    """Parses arguments and calls :func:`odis_mm.apis.train`; exits with 2 and one sentence if the input is wrong."""
    parser = _parser('Pretrain a backbone or train a detector, by the config.')
    parser.add_argument('--resume',
                        nargs='?',
                        const='auto',
                        metavar='CHECKPOINT',
                        help='continue; without a path, from the latest checkpoint in the work dir')
    parser.add_argument('--amp',
                        nargs='?',
                        const='bf16',
                        choices=sorted(apis.AMP_WRAPPERS),
                        help='mixed precision (default bf16, on any device)')
    args = parser.parse_args(argv)
    _guarded(lambda: apis.train(args.config,
                                work_dir=args.work_dir,
                                resume=args.resume,
                                amp=args.amp,
                                options=_options(args.cfg_options),
                                launcher=args.launcher))


def test_main(argv: Optional[List[str]] = None) -> None:
    """Parses arguments and calls :func:`odis_mm.apis.test`."""
    parser = _parser('Evaluate a checkpoint by the test set and metric of the config.')
    parser.add_argument('checkpoint', help='epoch_N.pth of a run of this config')
    args = parser.parse_args(argv)
    _guarded(lambda: apis.test(args.config,
                               args.checkpoint,
                               work_dir=args.work_dir,
                               options=_options(args.cfg_options),
                               launcher=args.launcher))


def main(argv: Optional[List[str]] = None) -> None:
    """``python -m odis_mm {train,test,transfer,...} ...``."""
    from . import commands as others  # they use this module
    argv = sys.argv[1:] if argv is None else argv
    commands: Dict[str, Callable] = dict(train=train_main, test=test_main, **others.COMMANDS)
    if not argv or argv[0] not in commands:
        sys.exit(
            f'usage: python -m odis_mm {{{",".join(commands)}}} CONFIG ... (-h after the command for its options)')
    commands[argv[0]](argv[1:])


def _parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description,
                                     epilog='ODIS_MM_DEBUG=1 in the environment shows the full traceback of an error.')
    parser.add_argument('config', help='path of a config, or name of a shipped one such as odis_vits_coco')
    parser.add_argument('--work-dir',
                        help='logs, checkpoints and the resolved config go here (default: work_dirs/<config>)')
    parser.add_argument('--cfg-options',
                        nargs='+',
                        default=[],
                        metavar='KEY=VALUE',
                        action='extend',
                        help='e.g. train_dataloader.batch_size=8; +KEY=VALUE adds a key that the config does not know')
    parser.add_argument('--launcher',
                        choices=('none', 'pytorch', 'slurm', 'mpi'),
                        default='none',
                        help='pytorch: started by torchrun')
    parser.add_argument('--local-rank', '--local_rank', type=int,
                        help=argparse.SUPPRESS)  # older launchers pass it; torchrun sets LOCAL_RANK
    return parser


def _options(pairs: List[str]) -> Dict[str, Any]:
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition('=')
        if not equals or not key:
            raise ConfigError(f'--cfg-options {pair!r} is not of the form KEY=VALUE (no spaces around the =).')
        # mmengine strips the blanks out of any value; a plain text, such as a path, keeps them
        try:
            options[key] = value if ' ' in value and value[0] not in '[(' else DictAction._parse_iterable(value)
        except (RecursionError, AssertionError) as error:
            raise ConfigError(f'--cfg-options {pair!r}: the value must be a number, text, or a list or tuple of such; '
                              'for anything nested deeper write a config that inherits from this one.') from error
    return options


def _guarded(call: Callable[[], Any]) -> None:
    debug = os.environ.get('ODIS_MM_DEBUG') == '1'
    try:
        call()
    except Exception as error:
        sentence = None if debug else explain(error)
        if sentence is None:
            raise
        rank = os.environ.get('RANK')
        print(f'error{f" (rank {rank})" if rank else ""}: {sentence}', file=sys.stderr, flush=True)
        sys.exit(USER_ERROR)


def explain(error: BaseException) -> Optional[str]:
    """One sentence for errors that a user can mend: raised on purpose by this package, or of files; None for others."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        where = f' for {error.filename}' if error.filename else ''
        return f'no space left on the device{where}: make room and continue with --resume.'
    if isinstance(error, (FileNotFoundError, PermissionError)) and error.filename and not _on_purpose(error):
        hint = ''
        if isinstance(error, FileNotFoundError):
            hint = '; the data roots come from COCO_ROOT, IMAGENET_ROOT, ADE20K_ROOT or --cfg-options'
        return f'{error.filename}: {error.strerror}{hint}.'
    if isinstance(error, ConfigError) or _on_purpose(error):
        return ' '.join(str(error.args[-1] if isinstance(error, KeyError) else error).split())
    return _from_worker(str(error))


def _on_purpose(error: BaseException) -> bool:
    """Whether a ``raise`` statement of this package raised it; an accident inside our code keeps its traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and _is_raise(frames[-1].filename, frames[-1].lineno)


def _is_raise(filename: str, line: int) -> bool:
    ours = os.path.abspath(filename).startswith(PACKAGE)
    return ours and linecache.getline(filename, line).lstrip().startswith('raise ')


def _from_worker(text: str) -> Optional[str]:
    """The same for what a data loading worker raised: torch hands over its traceback as text."""
    if 'in DataLoader worker process' not in text:
        return None
    frames = re.findall(r'^  File "(.+?)", line (\d+), in ', text, re.MULTILINE)
    if not frames or not _is_raise(frames[-1][0], int(frames[-1][1])):
        return None
    found = re.search(r'^(?:\w+\.)*\w+(?:Error|Exception|Warning): (.+)\Z', text, re.MULTILINE | re.DOTALL)
    return ' '.join(found[1].split()) if found else None
