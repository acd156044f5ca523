"""Schedules as functions of the global iteration, so that a resumed run is the same run."""

import math


def cosine(start: float, end: float, step: float, total: float) -> float:
    """Return half a cosine from ``start`` at 0 to ``end`` at ``total`` (DINO's form); ``end`` ever after."""
    if step >= total:
        return end
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * step / total))


def linear(start: float, end: float, step: float, total: float) -> float:
    """Return a straight line from ``start`` at 0 to ``end`` at ``total``; ``end`` ever after (at once if ``total`` is
    0)."""
    if step >= total:
        return end
    return start + (end - start) * step / total
