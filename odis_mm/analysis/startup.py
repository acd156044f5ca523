"""How long a run takes to its first iteration."""
import argparse
import contextlib
import datetime
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import List, Optional, Sequence

from ..cli import _guarded
from ..config_check import ConfigError
from ..workflows.stages import hardware

FIRST = re.compile(r'Epoch\(train\)|Iter\(train\)')  # of mmengine's log line of a training iteration
TRAIN = (sys.executable, '-m', 'odis_mm', 'train')


def seconds_to_first_iteration(config: str, options: Sequence[str] = (), train: Sequence[str] = TRAIN, limit: float = 300.) -> float:
    """Starts training in a process of its own and ends it when the log shows an iteration.

    Args:
        config: As the command line takes it.
        options: ``KEY=VALUE`` for ``--cfg-options``.
        train: The command in front of the config.
        limit: Seconds after which there is something wrong.

    Raises:
        ConfigError: the run ends, or the limit is reached, before any iteration; with the run's last lines.
    """
    lines: List[str] = []
    with tempfile.TemporaryDirectory() as work_dir:
        start = time.perf_counter()
        process = subprocess.Popen([*train, config, '--work-dir', work_dir, '--cfg-options', 'default_hooks.logger.interval=1', *options],
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace', start_new_session=True)
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
    raise ConfigError(f'{config}: the run ended after {time.perf_counter() - start:.0f} s (limit {limit:.0f}) without an iteration{said}')


def _kill(process: subprocess.Popen) -> None:
    """With its data workers, and without the checkpoint that SIGTERM asks for."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def main(argv: Optional[List[str]] = None, train: Sequence[str] = TRAIN) -> None:
    """``tools/analysis/benchmark_startup.py CONFIG``: prints the times, keeps the json."""
    parser = argparse.ArgumentParser(description='Seconds from the command to the first finished iteration of training.')
    parser.add_argument('config', nargs='?', default='odis_demo')
    parser.add_argument('--repeats', type=int, default=5, help='counted ones; one before them fills the page cache')
    parser.add_argument('--out', metavar='JSON', help='keep the numbers')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', action='extend')
    args = parser.parse_args(argv)

    def work() -> None:
        seconds = [seconds_to_first_iteration(args.config, args.cfg_options, train) for _ in range(args.repeats + 1)][1:]
        result = dict(config=args.config, date=datetime.datetime.now().astimezone().isoformat(timespec='seconds'), hardware=hardware(),
                      median=statistics.median(seconds), seconds=seconds, load=os.getloadavg()[0])
        print(f'{args.config}: first iteration after {result["median"]:.1f} s, the median of {args.repeats} '
              f'({", ".join(f"{s:.1f}" for s in seconds)}); {result["hardware"]}, load {result["load"]:.1f}')
        if args.out:
            Path(args.out).parent.mkdir(parents=True, exist_ok=True)
            Path(args.out).write_text(json.dumps(result, indent=1) + '\n')

    _guarded(work)
