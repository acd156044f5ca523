"""Loader workers and the signals that their whole process group gets."""

import os
import signal
import threading
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Callable, ContextManager, Iterator, Optional

import cv2
import torch
from mmengine.registry import FUNCTIONS
from torch.utils.data import DataLoader

# what schedulers, torchrun, and the Ctrl-C or the end of a terminal send to all processes of a run at once
GROUP_SIGNAL_NAMES = ('SIGTERM', 'SIGINT', 'SIGHUP', 'SIGUSR1', 'SIGUSR2')
# Windows has two
GROUP_SIGNALS = frozenset(getattr(signal, name) for name in GROUP_SIGNAL_NAMES if hasattr(signal, name))
CAN_TELL_SENDERS = hasattr(signal, 'sigwaitinfo')


@FUNCTIONS.register_module()
def single_thread_worker(worker_id: int) -> None:
    """Set one thread per worker (``worker_init_fn`` of a loader), as the workers themselves are the parallelism, and
    ignore signals from other processes than the parent.

    Seeds nothing: all random numbers of a sample come from its own generator. A signal to the whole process group is
    for the run to answer, which needs its workers for that: see :func:`obey_parent_alone`.
    """
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    obey_parent_alone()


def obey_parent_alone() -> None:
    """Have this process and its future threads follow, of ``GROUP_SIGNALS``, the parent's SIGTERM alone, by which
    Python ends its workers.

    They are blocked rather than ignored: a thread takes them and looks who sent them. (A handler could not tell, and
    one that the parent had set before it forked would take the SIGTERM that the parent then waits for.) macOS can
    not tell senders: all stays as it was there.
    """
    if not CAN_TELL_SENDERS:
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, GROUP_SIGNALS)
    threading.Thread(target=_answer, args=(os.getppid(),), daemon=True).start()


def _answer(parent: int) -> None:
    while True:
        got = signal.sigwaitinfo(GROUP_SIGNALS)
        if (got.si_signo, got.si_pid) == (signal.SIGTERM, parent) or os.getppid() != parent:
            os._exit(0)  # as torch's own handler does; the main thread may be anywhere


def held_while_forking(loader: DataLoader) -> ContextManager[None]:
    """Hold ``GROUP_SIGNALS`` back while the workers of ``loader`` start: they begin with them blocked, and none hits
    one too early.

    Only for workers that listen to them later (``single_thread_worker``): others could never be ended.
    """
    return _held() if CAN_TELL_SENDERS and _listens(loader) else nullcontext()


def leave_signals_to_the_run(loader: DataLoader) -> DataLoader:
    """Have the workers of a loader that was made elsewhere (mmdet's) do what ``single_thread_worker`` does about
    signals; return the loader."""
    if CAN_TELL_SENDERS and type(loader) is DataLoader:
        if not _listens(loader):
            loader.worker_init_fn = partial(_obey_and_start, loader.worker_init_fn)
        loader.__class__ = _HeldLoader
    return loader


class _HeldLoader(DataLoader):
    def __iter__(self):
        with _held():
            return super().__iter__()


def _obey_and_start(start: Optional[Callable[[int], None]], worker_id: int) -> None:
    obey_parent_alone()
    if start is not None:
        start(worker_id)


def _listens(loader: DataLoader) -> bool:
    start = loader.worker_init_fn
    while isinstance(start, partial) and start.func is not _obey_and_start:
        start = start.func
    return start is single_thread_worker or isinstance(start, partial)


@contextmanager
def _held() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, GROUP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
