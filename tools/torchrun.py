#!/usr/bin/env python
"""torchrun that says in one sentence which nodes did not come; its arguments are torchrun's. Called by
torchrun.sh."""

import os
import sys
from pathlib import Path

from torch.distributed import DistNetworkError, DistStoreError
from torch.distributed.run import main

if __name__ == '__main__':
    try:
        main()
    except (DistNetworkError, DistStoreError):
        sys.path[0] = str(Path(__file__).resolve().parents[1])
        from odis_mm.utils.peers import missing_nodes

        sys.exit(
            'error: '
            + missing_nodes(
                os.environ.get('MASTER_ADDR', '127.0.0.1'),
                os.environ.get('PORT', '29500'),
                os.environ.get('NNODES', '1'),
            )
        )
