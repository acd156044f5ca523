"""The errors that a user can act on. Each message is one sentence: which file or key, what is wrong, what to do.

Whatever is not a :class:`UserError` is a fault of this package or of one below it, and keeps its traceback.
"""

import difflib
import errno
import os
import re
import sys
from typing import Any, Callable, Iterable, Optional

USER_ERROR = 2  # exit code
INTERRUPTED = 130  # exit code after Ctrl-C, as shells have it
# what is wrong with a path that a user named, or the file system under it
_PLACES = {
    getattr(errno, name)
    for name in 'ENOENT EACCES EPERM EROFS EEXIST ENOTDIR EISDIR ELOOP ENAMETOOLONG ESTALE ENOTCONN EIO'.split()
    if hasattr(errno, name)
}
# a full disk, a full quota, a limit on the size of files: writing fails, and names no file
_FULL = {getattr(errno, name) for name in ('ENOSPC', 'EDQUOT', 'EFBIG') if hasattr(errno, name)}
# torch's, on GPUs and CPUs, of a size that no machine has, and of loader workers that the system ended
_NO_MEMORY = re.compile(
    r"CUDA(?: error:)? out of memory|DefaultCPUAllocator: can't allocate|Storage size calculation overflowed|"
    r'DataLoader worker .*is killed by signal: (?:Killed|Bus error)'
)


def printable(text: str) -> str:
    """Return text that any stream of UTF-8 takes: of file names that are no UTF-8, each such byte becomes ``\\xff``."""
    try:
        return text.encode('utf-8', 'surrogateescape').decode('utf-8', 'backslashreplace')
    except UnicodeEncodeError:  # half a character out of a json
        return text.encode('utf-8', 'backslashreplace').decode()


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return '; did you mean ...?' with the most similar known name, or '' if none is similar."""
    match = difflib.get_close_matches(name, sorted(map(str, known)), 1, cutoff)
    return f'; did you mean {match[0]!r}?' if match else ''


class UserError(Exception):
    """Base class of every error whose message is meant for the user of the command line."""

    def __init__(self, *args: Any):
        super().__init__(*(printable(arg) if isinstance(arg, str) else arg for arg in args))


class ConfigError(UserError, ValueError):
    """A config, an option, or an argument of a class that a config builds is wrong."""


class CheckpointError(UserError, ValueError):
    """A checkpoint cannot be used."""


class FileWriteError(UserError, OSError):
    """A file could not be written; whatever stood under its name is untouched."""


class AnnotationError(UserError, ValueError):
    """Annotations cannot be read."""


class BadImageError(UserError, ValueError):
    """An image file gives no usable pixels. A data set of many images can do without it."""


def too_many_bad(bad: int, total: int, most: float) -> bool:
    """Return whether more images of a set are bad than the share ``most`` allows.

    Unless that share is 0, one of three images or more may always be bad: it is no reason to end a run on a small set.
    """
    return bad > (max(most * total, 1) if most and total > 2 else most * total)


class UnreadableImageError(BadImageError, OSError):
    """The same, because the file system refused."""


class MissingImageError(BadImageError, FileNotFoundError):
    """The same, because there is no such file."""


class MissingPeersError(UserError, ConnectionError):
    """Ranks did not come; the message names the master, who is missing, and the usual causes."""


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that a config or an option names does not exist."""


class FolderInUseError(UserError, FileExistsError):
    """A folder holds something else, which is not overwritten."""


class NonFiniteLossError(UserError, FloatingPointError):
    """Training cannot go on: its loss is not finite in several steps in a row."""


class StageError(UserError, RuntimeError):
    """A stage of an experiment failed; the message is the one in which it ended."""


def run_command(call: Callable[[], Any]) -> Any:
    """Return ``call()``, or print the sentence of a user error to stderr and exit with ``USER_ERROR``.

    With ``ODIS_MM_DEBUG=1`` in the environment the traceback is shown instead.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, 'reconfigure'):  # a file name may hold what the terminal's encoding does not
            stream.reconfigure(errors='backslashreplace')
    try:
        return call()
    except KeyboardInterrupt:
        if os.environ.get('ODIS_MM_DEBUG') == '1':
            raise
        print('error: interrupted by Ctrl-C.', file=sys.stderr, flush=True)
        sys.exit(INTERRUPTED)
    except Exception as error:
        sentence = None if os.environ.get('ODIS_MM_DEBUG') == '1' else explain(error)
        if sentence is None:
            raise
        rank = os.environ.get('RANK')
        print(f'error{f" (rank {rank})" if rank else ""}: {sentence}', file=sys.stderr, flush=True)
        sys.exit(USER_ERROR)


def explain(error: BaseException) -> Optional[str]:
    """Return one sentence for an error that a user can act on, None for any other.

    Besides :class:`UserError` these are a full disk, too little memory (of the machine or a GPU), a path that the user
    named and that is missing or closed, and what a data loading worker raised: torch hands that over as an exception of
    the same class whose text holds the worker's traceback.
    """
    if isinstance(error, UserError):
        return _from_worker(error) or ' '.join(str(error).split())
    if isinstance(error, OSError) and error.errno in _FULL:
        what = 'no space left on the device' if error.errno == errno.ENOSPC else error.strerror
        where = f' for {error.filename}' if error.filename else ''
        return f'{what}{where}: make room and continue with --resume.'
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_MEMORY.search(str(error))):
        asked = re.search(r'(?i)to allocate ([\d.]+ \w+)', str(error))
        return (
            f'out of memory{f" ({asked[1]} more were needed)" if asked else ""}: take fewer images at once (--batch, '
            'train_dataloader.batch_size) or smaller ones (--size), fewer train_dataloader.num_workers, or add --amp '
            'or model.backbone.with_cp=True.'
        )
    if isinstance(error, OSError) and error.errno in _PLACES and error.filename:
        hint = ''
        if isinstance(error, FileNotFoundError):
            hint = '; the data roots come from COCO_ROOT, IMAGENET_ROOT, ADE20K_ROOT or --cfg-options'
        return f'{printable(os.fsdecode(error.filename))}: {error.strerror}{hint}.'
    return None


def _from_worker(error: UserError) -> Optional[str]:
    """The sentence at the end of a worker's traceback."""
    text = str(error)
    if 'in DataLoader worker process' not in text:
        return None
    name = type(error).__name__
    found = re.search(rf'^(?:\w+\.)*{name}: (.+)\Z', text, re.MULTILINE | re.DOTALL)
    return ' '.join(found[1].split()) if found else None
