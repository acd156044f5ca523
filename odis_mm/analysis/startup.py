"""How long a run takes to its first iteration."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from typing import Dict, List, Optional, Sequence

from ..utils.errors import ConfigError

FIRST = re.compile(r'Epoch\(train\)|Iter\(train\)')  # of mmengine's log line of a training iteration
TRAIN = (sys.executable, '-m', 'odis_mm', 'train')


def seconds_to_first_iteration(
    config: str,
    options: Sequence[str] = (),
    train: Sequence[str] = TRAIN,
    limit: float = 300.0,
    environment: Optional[Dict[str, str]] = None,
) -> float:
    """Starts training in a process of its own and ends it when the log shows an iteration.

    Args:
        config: As the command line takes it.
        options: ``KEY=VALUE`` for ``--cfg-options``.
        train: The command in front of the config.
        limit: Seconds after which there is something wrong.
        environment: On top of this process's.

    Raises:
        ConfigError: the run ends, or the limit is reached, before any iteration; with the run's last lines.
    """
    lines: List[str] = []
    with tempfile.TemporaryDirectory() as work_dir:
        start = time.perf_counter()
        process = subprocess.Popen(
            [*train, config, '--work-dir', work_dir, '--cfg-options', 'default_hooks.logger.interval=1', *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors='replace',
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )
        alarm = threading.Timer(limit, _kill, [process])  # also of a run that says nothing
        alarm.start()
        try:
            for line in process.stdout:
                if FIRST.search(line):
                    return time.perf_counter() - start
                lines.append(line.rstrip())
        finally:
            alarm.cancel()
            _kill(process)
            process.wait()
            process.stdout.close()
    said = f'; it said last: {" | ".join(lines[-3:])}' if lines else ''
    raise ConfigError(
        f'{config}: the run ended after {time.perf_counter() - start:.0f} s (limit {limit:.0f}) without an '
        f'iteration{said}'
    )


def _kill(process: subprocess.Popen) -> None:
    """With its data workers, and without the checkpoint that SIGTERM asks for."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
