#!/usr/bin/env python
"""Time, FLOPs and memory of a pretraining step and of its data: python tools/analysis/benchmark.py CONFIG [options, see
--help]"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])  # a checkout works without being installed

from odis_mm.cli.benchmarks import benchmark_main  # noqa: E402

if __name__ == '__main__':
    benchmark_main()
