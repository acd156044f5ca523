#!/usr/bin/env python
"""Time of one GTSA training step: python tools/analysis/benchmark_gtsa.py [--batch 8 --threads 2, see --help]"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])  # a checkout works without being installed

from odis_mm.cli.benchmarks import gtsa_main  # noqa: E402

if __name__ == '__main__':
    gtsa_main()
