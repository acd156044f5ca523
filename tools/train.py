#!/usr/bin/env python
"""Pretraining and detectors alike: python tools/train.py CONFIG [--work-dir D] [--resume [CKPT]] [--amp [bf16|fp16]] [--cfg-options K=V ...]"""
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # a checkout works without being installed

from odis_mm.cli import train_main  # noqa: E402

if __name__ == '__main__':
    train_main()
