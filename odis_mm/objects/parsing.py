"""What the readers of all formats share: which files, one after the other, and what cannot be read."""

import os
from pathlib import Path
from typing import Callable, Iterator, List, Sequence, Tuple

from ..utils.errors import AnnotationError
from ..utils.paths import walk_files
from .labelled import Labelled

# what damaged files make readers raise
WRONG = (AssertionError, ArithmeticError, KeyError, TypeError, ValueError, AttributeError, IndexError, OSError)


def files_below(path: Path, suffix: str) -> List[Path]:
    """Return the file itself, or those below a folder where images are looked for, too: not what runs wrote there."""
    if path.is_file():
        return [path]
    return sorted(Path(name) for name in walk_files(path, []) if name.lower().endswith(suffix) and os.path.isfile(name))


def read_each(
    files: Sequence[Path], read: Callable[[Path], Iterator[Labelled]], faults: List[str]
) -> List[Tuple[Path, Labelled]]:
    """Return what ``read`` finds in each file; a file that it cannot read is added to ``faults``."""
    from globox.errors import ParsingError

    found = []
    for file in files:
        try:
            found += [(file, record) for record in read(file)]
        except AnnotationError as error:
            faults.append(str(error))
        except (ParsingError, *WRONG) as error:
            faults.append(f'{file} cannot be read ({type(error).__name__}: {error})')
    return found


def read_lines(file: Path) -> List[str]:
    """Return the lines of a list of names.

    Raises:
        AnnotationError: it is no text in UTF-8.
    """
    try:
        return file.read_text('utf-8-sig').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise AnnotationError(f'{file} cannot be read as text in UTF-8 ({error}): save it as that.') from error
