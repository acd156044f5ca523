"""What this process runs on."""

import os
import platform
from pathlib import Path

import torch

from ..version import __version__


def hardware() -> str:
    """Return one line: processor or GPU, cores, versions."""
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
