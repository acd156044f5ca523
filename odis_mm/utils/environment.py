"""What this process runs on."""

import os
import platform
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

from ..version import __version__
from .errors import ConfigError

MACHINE = 'machine: '  # with which the line of a training's log begins that tells what it ran on


def command_line() -> str:
    """Return the command that started this process, as a user types it: ``odis-mm train ...`` also for the module that
    ``python -m odis_mm`` runs."""
    program = Path(sys.argv[0])
    if program.stem == 'odis-mm' or program.parts[-2:] == ('odis_mm', '__main__.py'):
        return shlex.join(['odis-mm', *sys.argv[1:]])
    return shlex.join([Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]])


def cores() -> int:
    """Return the number of cores that this process may use, of which a cluster may give it a few."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def check_device(name: str) -> None:
    """Refuse a device, as torch names it, that is not here.

    Raises:
        ConfigError: it is not.
    """
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # the second one of a torch without CUDA
        here = ', '.join(['cpu', *(f'cuda:{i}' for i in range(torch.cuda.device_count()))])
        raise ConfigError(f'there is no device {name!r} here: take one of {here}.') from error


def detectors_lack_gpu() -> bool:
    """Return whether torch sees a GPU for which mmcv's operators, which detectors call, were not compiled."""
    import torch

    if not torch.cuda.is_available() or find_spec('mmcv._ext') is None:  # without any, detectors cannot be imported
        return False
    from mmcv.ops import get_compiling_cuda_version

    return get_compiling_cuda_version() == 'not available'


def check_operators(device: str = 'cuda') -> None:
    """Refuse a device on which mmcv's operators do not run.

    Raises:
        ConfigError: a GPU, and they were compiled for CPUs alone.
    """
    if device.startswith('cuda') and detectors_lack_gpu():
        raise ConfigError(
            "mmcv's operators are compiled for CPUs alone, and a detector calls them on the GPU: compile them anew "
            'with nvcc on the PATH (`odis-mm doctor` prints the command), or use the CPU by CUDA_VISIBLE_DEVICES= '
            'before the command.'
        )


def hardware() -> str:
    """Return one line: processor or GPU, cores, versions."""
    import torch

    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else next(
            (
                line.split(':')[1].strip()
                for line in Path('/proc/cpuinfo').read_text().splitlines()
                if line.startswith('model name')
            ),
            platform.processor(),
        )
        if Path('/proc/cpuinfo').is_file()
        else platform.processor()
    )
    return (
        f'{device}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}, odis_mm '
        f'{__version__}'
    )
