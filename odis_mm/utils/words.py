"""Words of messages."""

from typing import Optional


def count(number: int, noun: str, plural: Optional[str] = None) -> str:
    """Return a number with its noun: '1 rank', '2 ranks'; a plural that takes more than an s is named."""
    return f'{number} {noun if number == 1 else plural or noun + "s"}'
