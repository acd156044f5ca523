#!/usr/bin/env python
"""A training step of lightly-train beside ours: python tools/analysis/benchmark_peer.py [--batch 8, see --help]"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])  # a checkout works without being installed

from odis_mm.cli.benchmarks import peer_main  # noqa: E402

if __name__ == '__main__':
    peer_main()
