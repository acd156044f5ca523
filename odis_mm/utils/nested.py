"""Configs as the nests of dicts, lists and tuples that they are."""

from typing import Any, Iterator, Tuple


def walk(node: Any, path: str = '') -> Iterator[Tuple[str, Any]]:
    """Return all (dotted path, value) below a node, each before what is below it."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, (list, tuple)) else ()
    for key, value in items:
        below = f'{path}.{key}' if path else str(key)
        yield below, value
        yield from walk(value, below)


def dicts(node: Any) -> Iterator[dict]:
    """Return the dicts of a nest, the outermost first."""
    if isinstance(node, dict):
        yield node
    yield from (value for _, value in walk(node) if isinstance(value, dict))
