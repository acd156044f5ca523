#!/usr/bin/env python
"""Checks every image, box and mask of a data set: python tools/misc/verify_dataset.py --data DIR [options, see
--help]"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])  # a checkout works without being installed

from odis_mm.cli.verify import verify_main  # noqa: E402

if __name__ == '__main__':
    verify_main()
