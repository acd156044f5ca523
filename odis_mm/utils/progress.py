"""A line now and then about work that takes longer than one waits without looking."""

import sys
import time
from typing import Iterable, Iterator, TypeVar

from mmengine.dist import is_main_process

Item = TypeVar('Item')
PATIENCE = 5.0  # seconds before the first line, and between two


def reported(items: Iterable[Item], total: int, each: int = 1, what: str = 'images') -> Iterator[Item]:
    """Yield the items; the first rank says on stderr, every few seconds, how many are done and how long the rest takes.

    Args:
        items: What is worked on between two yields.
        total: How many there are, counted as ``what``.
        each: How many of them an item stands for.
        what: Their name.
    """
    start = last = time.monotonic()
    for number, item in enumerate(items, 1):
        yield item
        now, done = time.monotonic(), min(number * each, total)
        if now - last > PATIENCE and done < total and is_main_process():
            last, speed = now, done / (now - start)
            left = (total - done) / speed
            print(f'{done}/{total} {what}, {speed:.3g}/s, {left:.0f} s left', file=sys.stderr, flush=True)
