#!/usr/bin/env python
"""Weights from any known layout to any other, proved: python tools/transfer.py SOURCE OUT --to LAYOUT [options, see
--help]"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # a checkout works without being installed

from odis_mm.cli.checkpoints import transfer_main  # noqa: E402

if __name__ == '__main__':
    transfer_main()
