#!/usr/bin/env python
"""Evaluation by the config: python tools/test.py CONFIG CHECKPOINT [options, see --help]"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # a checkout works without being installed

from odis_mm.cli.train import test_main  # noqa: E402

if __name__ == '__main__':
    test_main()
