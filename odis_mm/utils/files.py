"""Files that are whole or not there."""

import errno
import json
import os
import sys
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Callable, Iterator, List, Optional, Union

from .errors import FileWriteError

try:
    import orjson
except ImportError:  # an extra: it halves the time to read COCO's annotations
    orjson = None

PathLike = Union[str, os.PathLike]


def atomic_save(content, path: PathLike) -> None:
    """Do ``torch.save`` by :func:`atomic_write`."""
    import torch  # here: what else is in this file does not wait for it

    atomic_write(path, lambda file: torch.save(content, file))


def atomic_write_text(path: PathLike, text: str) -> None:
    """Write text as UTF-8 by :func:`atomic_write`; names of files that are not UTF-8 keep their bytes."""
    atomic_write(path, lambda file: file.write(text.encode('utf-8', 'surrogateescape')))


def atomic_write(path: PathLike, write: Callable[[BinaryIO], object]) -> None:
    """Do ``write(file)`` to a temporary name in the same folder, flushed to the disk, then renamed over ``path``.

    An interruption at any moment leaves the old file or the new one, never a half.

    Raises:
        FileWriteError: no such folder, no permission, or the disk is full; the temporary file is removed.
    """
    path = Path(path)
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f'.{path.name}.', suffix='.tmp', dir=path.parent)
        with os.fdopen(handle, 'wb') as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp's 0600 would hide the file from the group
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch's zip writer turns some write errors into RuntimeError
        cause = error if isinstance(error, OSError) else error.__context__
        raise FileWriteError(
            f'could not save {path}: {_write_reason(cause, path)} Nothing that was there is changed.'
        ) from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


def parse_json(data: bytes) -> Any:
    """Return the content of a json file; ValueError or RecursionError if it is none."""
    if orjson is not None:
        try:
            return orjson.loads(data)
        except ValueError:  # it knows neither NaN nor a byte order mark nor names that are no UTF-8, which json takes
            pass
    text = data.decode(json.detect_encoding(data), 'surrogatepass')
    del data  # a large file would be there twice while it is parsed
    return json.loads(text)


def read_records(path: PathLike) -> List[dict]:
    """Return the dicts of a file with one json a line; a line that a full disk or a kill cut short is left out."""
    records = []
    for line in Path(path).read_text().splitlines():
        with suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict):
                records.append(record)
    return records


@contextmanager
def locked(path: PathLike, waiting: str = '') -> Iterator[None]:
    """Hold the lock that a file stands for; a process that has to wait says so (``waiting``) on stderr.

    Where the system has no such locks, nothing is held.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(path, 'w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f'{waiting} (lock: {path})', file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def first_sentence(error: BaseException) -> str:
    """Return the first sentence of an error's message, at most 200 characters; its class if it has none."""
    text = str(error).strip().splitlines()
    return text[0].split('. ')[0].rstrip('.')[:200] if text else type(error).__name__


def _write_reason(error: Optional[BaseException], path: Path) -> str:
    code = getattr(error, 'errno', None)
    if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return 'the disk (or your quota) is full; free some space.'
    if code in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f'no permission to write into {path.parent}; choose another folder with --work-dir.'
    if code in (errno.ENOENT, errno.ENOTDIR):
        return f'the folder {path.parent} does not exist.'
    return f'writing failed ({first_sentence(error) if error else "unknown reason"}), most often a full disk.'
