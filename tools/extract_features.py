#!/usr/bin/env python
"""Features of all objects of a data set: python tools/extract_features.py CHECKPOINT --ann-file FILE --out FILE.npz
[options]"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # a checkout works without being installed

from odis_mm.cli.checkpoints import features_main  # noqa: E402

if __name__ == '__main__':
    features_main()
