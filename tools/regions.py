#!/usr/bin/env python
"""A proxy for detection from frozen features: python tools/regions.py CHECKPOINT --data DIR [options, see --help]"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # a checkout works without being installed

from odis_mm.cli.checkpoints import regions_main  # noqa: E402

if __name__ == '__main__':
    regions_main()
