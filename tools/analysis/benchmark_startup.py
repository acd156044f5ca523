#!/usr/bin/env python
"""Seconds from `python tools/train.py CONFIG` to its first iteration: python tools/analysis/benchmark_startup.py
[CONFIG], see --help."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)  # a checkout works without being installed

from odis_mm.cli.benchmarks import startup_main  # noqa: E402

if __name__ == '__main__':
    startup_main(train=(sys.executable, str(ROOT / 'tools/train.py')))
