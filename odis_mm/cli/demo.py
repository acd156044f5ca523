"""``odis-mm demo``: render the demo set."""

import argparse
from typing import List, Optional

from .common import DEMO, DEMO_ROOT, run


def demo_main(argv: Optional[List[str]] = None) -> None:
    """Render the set unless it is there, and print its folder."""
    parser = argparse.ArgumentParser(
        prog='odis-mm demo', description='Render the demo set unless it is there, and print its folder.'
    )
    parser.add_argument('--root', help=f'default: $ODIS_DEMO_ROOT or {DEMO_ROOT}')
    for name, default in DEMO.items():
        parser.add_argument(f'--{name.replace("_", "-")}', type=int, default=default, help=f'default: {default}')
    parser.add_argument('--processes', type=int)
    args = parser.parse_args(argv)

    def work() -> str:
        from ..datasets.demo import ensure_demo

        return ensure_demo(**vars(args))

    print(run(work))
