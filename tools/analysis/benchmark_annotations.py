#!/usr/bin/env python
"""What reading a large annotation file costs: python tools/analysis/benchmark_annotations.py, see --help."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT)  # a checkout works without being installed

from odis_mm.cli.benchmarks import annotations_main  # noqa: E402

if __name__ == '__main__':
    annotations_main(train=(sys.executable, str(ROOT / 'tools/train.py')))
