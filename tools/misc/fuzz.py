#!/usr/bin/env python
"""Mutated annotations and images through the readers: python tools/misc/fuzz.py [--annotations 10000 --images 10000 --seed 0], see --help"""
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])  # a checkout works without being installed

from odis_mm.analysis.fuzz import main  # noqa: E402

if __name__ == '__main__':
    main()
