"""What counts as a number, a size, a flag and an id in annotation files: one rule for all readers.

Numbers may be written as text (``"64"``, ``" 64.0 "``). A size is whole (64.0 is, 64.4 is not). A flag is a number or
``true``/``false``, as text too. An id that looks like a whole number is that number, so that ``7``, ``7.0`` and ``"7"``
are one.
"""

import re
from itertools import chain
from typing import Any, Dict, Hashable, Iterable, List, Optional, Sequence

import numpy as np

_NUMBER = re.compile(r'\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*', re.ASCII)
_WHOLE = re.compile(r'\s*(0|-?[1-9]\d*)(\.0*)?\s*', re.ASCII)  # not 007, which is a name
_WORDS = {'': False, 'false': False, 'no': False, 'true': True, 'yes': True}


def number(value: Any) -> float:
    """Return a number, written as one or as text; ValueError for anything else."""
    if isinstance(value, str):
        if not _NUMBER.fullmatch(value):
            raise ValueError(f'{value!r} is not a number')
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f'{value!r} is not a number')
    return float(value)


def numbers(rows: Sequence[Sequence[Any]], width: int) -> np.ndarray:
    """Return float64 [n, width] of rows of numbers; ValueError if one is not a number, or a row has another length."""
    found = np.array(rows)  # refuses rows of different lengths
    # text, or something else, among them; numpy takes true for 1
    if found.dtype.kind not in 'iuf' or bool in set(map(type, chain.from_iterable(rows))):
        found = np.array([[number(value) for value in row] for row in rows], np.float64)
    if found.size == 0:
        return np.zeros((0, width))
    if found.shape != (len(rows), width):
        raise ValueError(f'rows of {width} numbers are expected')
    return found.astype(np.float64)


def side(value: Any) -> Optional[int]:
    """Return an image's height or width in pixels; None for None and 0, which tell nothing; ValueError for anything but
    a whole number >= 1."""
    if value is None or value == '':
        return None
    found = number(value)
    if found == 0:
        return None
    if not 1 <= found < 1e9 or found != int(found):
        raise ValueError(f'{value!r} is not a whole number of pixels')
    return int(found)


def flag(value: Any) -> bool:
    """Return the truth of ``iscrowd`` and its like; ValueError for what is none."""
    if value is None or isinstance(value, bool):
        return bool(value)
    if isinstance(value, str) and value.strip().lower() in _WORDS:
        return _WORDS[value.strip().lower()]
    return number(value) != 0


def is_crowd(annotation: dict) -> bool:
    """Return whether an annotation is a crowd region: by ``iscrowd``, which is all that pycocotools looks at, or by
    ``ignore``."""
    return flag(annotation.get('iscrowd')) or flag(annotation.get('ignore'))


def identity(value: Any) -> Hashable:
    """Return an id: an int, or text that is none; ValueError for anything else."""
    if isinstance(value, str):
        found = _WHOLE.fullmatch(value)
        return int(found[1]) if found else value
    if isinstance(value, float) and value == value // 1:
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f'{value!r} is no id')
    return value


def identities(values: List[Any]) -> List[Hashable]:
    """Return :func:`identity` of all; at once where they are plain integers."""
    return values if set(map(type, values)) <= {int} else [identity(value) for value in values]


def numbering(ids: Iterable[Hashable]) -> Dict[Hashable, Hashable]:
    """Return ids -> themselves, or -> 1, 2, ... where some are numbers and others text, which pycocotools cannot
    sort."""
    ids = list(ids)
    return {key: i for i, key in enumerate(ids, 1)} if len(set(map(type, ids))) > 1 else {key: key for key in ids}
