#!/usr/bin/env python
"""Pretraining and detectors alike, by the config: python tools/train.py CONFIG [options, see --help]"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # a checkout works without being installed

from odis_mm.cli.train import train_main  # noqa: E402

if __name__ == '__main__':
    train_main()
