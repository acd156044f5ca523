"""What this process runs on."""

import os
import platform
import shlex
import sys
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
