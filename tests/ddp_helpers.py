"""Several processes on one machine, for tests of what ranks do together."""

import socket
from functools import partial
from pathlib import Path
from typing import Any, Callable, List

import torch
import torch.multiprocessing as mp

from helpers import forked


def free_port() -> int:
    """Return a port that is free now; take it when the ranks start, since another process may be given it
    later."""
    with socket.socket() as held:
        held.bind(('127.0.0.1', 0))
        return held.getsockname()[1]


def run_ranks(function: Callable, folder: Path, *args: Any, world: int = 2) -> List[Any]:
    """Return what ``function(rank, world, *args)`` returned on each of ``world`` gloo ranks in processes of their own.

    ``function`` is at the top level of its module. The ranks meet in a file under ``folder``, so that no port can be
    taken.
    """
    done = forked(partial(start_ranks, function, str(folder), args, world), folder)
    assert done.returncode == 0, done.stderr[-3000:]
    # objects of every kind, which this call's own processes wrote
    return [torch.load(Path(folder, f'rank{rank}.pt'), weights_only=False) for rank in range(world)]


def start_ranks(function: Callable, folder: str, args: tuple, world: int) -> None:
    mp.start_processes(_rank, args=(world, folder, function, args), nprocs=world, start_method='fork')


def _rank(rank: int, world: int, folder: str, function: Callable, args: tuple) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=world)
    torch.save(function(rank, world, *args), f'{folder}/rank{rank}.pt')
    torch.distributed.destroy_process_group()
