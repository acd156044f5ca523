"""``odis-mm demo``: render the demo set."""

from typing import List, Optional

from ..utils.parser import Parser, at_least
from .common import DEMO, DEMO_ROOT, run


def demo_main(argv: Optional[List[str]] = None) -> None:
    """Render the set unless it is there, and print its folder."""
    parser = Parser(prog='odis-mm demo', description='Render the demo set unless it is there, and print its folder.')
    parser.add_argument('--root', help=f'default: $ODIS_DEMO_ROOT or {DEMO_ROOT}')
    for name, default in DEMO.items():
        parser.add_argument(
            f'--{name.replace("_", "-")}',
            type=at_least(0 if name == 'seed' else 1),
            default=default,
            help=f'default: {default}',
        )
    parser.add_argument('--processes', type=at_least(1))
    args = parser.parse_args(argv)

    def work() -> str:
        from ..datasets.demo import ensure_demo

        return ensure_demo(**vars(args))

    print(run(work))
