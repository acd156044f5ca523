#!/usr/bin/env python
"""Kills, full disks and damaged files against a tiny run: python tools/misc/fault_campaign.py --work-dir DIR [options, see --help]"""
import os
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])  # a checkout works without being installed
os.environ['OMP_NUM_THREADS'] = '1'  # one thread: this process is forked

from odis_mm.analysis.fault_campaign import main  # noqa: E402

if __name__ == '__main__':
    main()
