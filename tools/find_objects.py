#!/usr/bin/env python
"""Objects for a folder of images: python tools/find_objects.py IMAGES --out JSON --source SOURCE [options, see
--help]"""

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # a checkout works without being installed

from odis_mm.cli.objects import find_objects_main  # noqa: E402

if __name__ == '__main__':
    find_objects_main()
