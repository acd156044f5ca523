#!/usr/bin/env python
"""k-NN accuracy on a labelled folder: python tools/knn.py CHECKPOINT --data DIR [options, see --help]"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # a checkout works without being installed

from odis_mm.cli.checkpoints import knn_main  # noqa: E402

if __name__ == '__main__':
    knn_main()
