"""Ranks that wait for each other at the start, but not for ever, and say who is missing."""

import os
import socket
import sys
import time
from datetime import timedelta
from typing import Sequence

from torch.distributed import DistNetworkError, PrefixStore, Store, TCPStore

from .errors import ConfigError, MissingPeersError

TIMEOUT_VARIABLE, TIMEOUT = 'ODIS_MM_PEER_TIMEOUT', 600.0
CAUSES = (
    'Usual causes: its job has not started or failed at its start (see its log); MASTER_ADDR is not the first node, or '
    'not reachable from there (host name, firewall, another network: GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME); PORT is '
    f'taken or differs; NNODES differs or a NODE_RANK is given twice. {TIMEOUT_VARIABLE}=SECONDS waits longer.'
)


def peer_timeout() -> float:
    """Return the seconds to wait for the others, from the environment.

    Raises:
        ConfigError: it holds no positive number.
    """
    text = os.environ.get(TIMEOUT_VARIABLE) or str(TIMEOUT)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float('inf'):
        raise ConfigError(f'{TIMEOUT_VARIABLE}={text!r} is no positive number of seconds.')
    return seconds


def agent_keeps_store() -> bool:
    """Return whether torchrun, and not the first rank, listens at the master's port."""
    return os.environ.get('TORCHELASTIC_USE_AGENT_STORE') == 'True'


def await_peers() -> Store:
    """Join the run that torchrun's variables describe (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT), and return when all
    ranks have.

    Returns:
        The store that they share, for ``init_process_group``.

    Raises:
        MissingPeersError: after ``ODIS_MM_PEER_TIMEOUT`` seconds.
    """
    rank, world, seconds = int(os.environ['RANK']), int(os.environ['WORLD_SIZE']), peer_timeout()
    host, port = os.environ['MASTER_ADDR'], int(os.environ['MASTER_PORT'])
    end = time.monotonic() + seconds
    master = rank == 0 and not agent_keeps_store()
    try:
        store = TCPStore(
            host, port, world, is_master=master, timeout=timedelta(seconds=seconds), wait_for_workers=False
        )
    except DistNetworkError as error:
        if master:
            raise MissingPeersError(
                f"rank 0 cannot listen at the master's address {host}:{port}: another run uses the port (set PORT), "
                'or the address is not that of this machine.'
            ) from error
        raise MissingPeersError(
            f'rank {rank} of {world} (on {socket.gethostname()}) did not reach the master {host}:{port} within '
            f'{seconds:g} s, where rank 0 should be. {CAUSES}'
        ) from error
    shared = PrefixStore(f'odis_mm/{os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)}', store)
    shared.set(f'joined/{rank}', socket.gethostname())
    missing, said = list(range(world)), time.monotonic() + min(10.0, seconds / 2)
    while True:
        missing = [other for other in missing if not shared.check([f'joined/{other}'])]
        if not missing:
            return shared
        now = time.monotonic()
        if now > end:
            raise MissingPeersError(
                f'{_who(missing, world)} did not join the master {host}:{port} within {seconds:g} s. {CAUSES}'
            )
        if rank == 0 and now > said:
            print(
                f'waiting for {_who(missing, world)} to join the master {host}:{port}, {end - now:.0f} s more',
                file=sys.stderr,
                flush=True,
            )
            said = end
        time.sleep(0.05)


def _who(missing: Sequence[int], world: int) -> str:
    named = ', '.join(map(str, missing[:16])) + (', ...' if len(missing) > 16 else '')
    return f'{len(missing)} of {world} ranks ({named})'


def missing_nodes(host: str, port: str, nodes: str) -> str:
    """Return the sentence for torchrun's own wait for the other nodes."""
    return (
        f'not all {nodes} nodes joined the master {host}:{port} within {peer_timeout():g} s, or it was not '
        f'reachable. {CAUSES}'
    )
