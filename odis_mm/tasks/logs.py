"""How much a job prints."""

import logging
from contextlib import contextmanager
from typing import Iterator, Sequence

from mmengine.logging import MMLogger

from ..utils.noise import quiet_console


@contextmanager
def logging_at(level: str) -> Iterator[None]:
    """Keep mmengine's current logger from printing below a level, 'INFO' or 'WARNING', for a while; before the run as
    during it, without its name."""
    logger = MMLogger.get_current_instance()
    quiet_console(logger)
    before = logger.level
    logger.setLevel(getattr(logging, level))
    try:
        yield
    finally:
        logger.setLevel(before)


def tell(lines: Sequence[str], quiet: bool) -> None:
    """Print lines; not through the logger, which a run before this one may have set to warnings only."""
    if not quiet:
        print('\n'.join(lines), flush=True)
