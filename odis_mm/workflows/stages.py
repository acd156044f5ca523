"""Stages of a comparison: each is run once, remembered in a file, and continued where it was interrupted; several at a
time."""

import fcntl
import functools
import hashlib
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import torch

from ..utils.environment import MACHINE, cores
from ..utils.errors import USER_ERROR, ConfigError, StageError
from ..utils.files import PathLike, atomic_write_text, read_records

HEARTBEAT = 60.0  # seconds between two lines that tell what runs
BUSY = 5.0  # seconds until a stage that another process works on is looked at again
PROGRAM = (sys.executable, '-m', 'odis_mm')
INTERRUPTED = 75  # exit code of a training that wrote a checkpoint and left
# a killed parent takes its children along: a training without its command would go on beside the one that resumes it
_DIE_WITH_PARENT = (
    'import ctypes, os, sys; parent = int(sys.argv[1]); ctypes.CDLL(None).prctl(1, 15); '
    'os.getppid() == parent or sys.exit(75); os.execvp(sys.argv[2], sys.argv[2:])'
)
_ITERATION = re.compile(r'(?:Epoch|Iter)\((?:train|val)\)\s*(?:\[\s*(\d+)\])?\[\s*(\d+)/\s*(\d+)\]')


@dataclass(frozen=True)
class Stage:
    """A piece of work whose result depends on its settings and on the stages that it needs, and on nothing else.

    Attributes:
        name: For people.
        settings: Plain values; another value makes it another stage, with a folder of its own.
        work: ``work(worker, folder, results)``, results by name of the stages that it needs; returns plain values.
        needs: Stages that come before.
    """

    name: str
    settings: dict
    work: Callable[['Worker', Path, Dict[str, dict]], dict] = field(compare=False)
    needs: Tuple['Stage', ...] = ()

    @functools.cached_property
    def key(self) -> str:
        """Name of its folder: its own name and a hash of all that its result depends on."""
        content = json.dumps([self.settings, [stage.key for stage in self.needs]], sort_keys=True, default=str)
        return f'{self.name}-{hashlib.sha256(content.encode()).hexdigest()[:8]}'

    def __hash__(self) -> int:
        return hash(self.key)


@dataclass
class Worker:
    """What a stage is run by: its share of the machine.

    Attributes:
        prefix: Words before each command, such as those of ``srun``.
        environment: Of each command, on top of this process's.
        lock: File descriptor that is closed when all processes of the stage have ended.
        stop: Set when no command may begin any more.
    """

    prefix: Sequence[str]
    environment: Dict[str, str]
    lock: int = -1
    stop: threading.Event = field(default_factory=threading.Event)
    processes: List[subprocess.Popen] = field(default_factory=list)
    log: Optional[Path] = None

    def command(self, arguments: Sequence, folder: Path, cpu: bool = False) -> Dict[str, float]:
        """Run ``odis-mm ARGUMENTS``, without GPUs where ``cpu``; what it prints goes to ``log.txt`` in the folder.

        Returns:
            ``seconds``, and ``memory_mb``, the most memory that one of its processes had on the host.

        Raises:
            StageError: it failed; with the sentence in which it ended, or the end of its log.
        """
        words = [*self.prefix, *PROGRAM, *map(str, arguments)]
        self.log = folder / 'log.txt'
        with open(self.log, 'ab') as out:
            process = subprocess.Popen(
                [sys.executable, '-c', _DIE_WITH_PARENT, str(os.getpid()), *words],
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                pass_fds=() if self.lock < 0 else (self.lock,),
                env={
                    **os.environ,
                    'PYTHONUNBUFFERED': '1',
                    **self.environment,
                    **({'CUDA_VISIBLE_DEVICES': ''} if cpu else {}),
                },
            )
        self.processes.append(process)
        if self.stop.is_set():  # in the meantime: who set it may have looked at the processes before this one was there
            process.terminate()
        begun = time.time()
        try:
            _, status, usage = os.wait4(process.pid, 0)
            code = process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            self.processes.remove(process)
        if not code:
            return dict(seconds=time.time() - begun, memory_mb=usage.ru_maxrss / 1024)
        tail = self.log.read_text(errors='replace').splitlines()[-20:]
        shown = ' '.join(['odis-mm', *map(str, arguments)])
        sentences = [line.partition('error: ')[2].strip() for line in tail if line.startswith('error: ')]
        if code == USER_ERROR and sentences:
            raise StageError(f'{sentences[-1]} (of: {shown})')
        if code in (INTERRUPTED, -signal.SIGTERM, -signal.SIGINT):
            raise StageError(f'{shown} was interrupted: start the same command again to go on.')
        if code == -signal.SIGKILL:
            raise StageError(
                f'{shown} was killed, as the system does where memory runs out: lower --jobs or the batch; its output '
                f'is in {self.log}.'
            )
        end = ' | '.join(line for line in tail[-3:] if line.strip())
        raise StageError(f'{shown} ended with exit code {code}; its output is in {self.log}, which ends: {end}')

    def progress(self) -> str:
        """Where the running training stands, from the end of its log."""
        if self.log is None or not self.log.is_file():
            return ''
        with open(self.log, 'rb') as file:
            file.seek(max(0, self.log.stat().st_size - 4096))
            found = _ITERATION.findall(file.read().decode(errors='replace'))
        if not found:
            return ''
        epoch, step, total = found[-1]
        return f'epoch {epoch}, {step}/{total}' if epoch else f'{step}/{total}'


class Stages:
    """Runs stages in the order of their needs, ``jobs`` at a time, and tells how far it is.

    Several processes, also on several machines with one file system, may run the same stages: each takes what no other
    works on.

    Args:
        work_dir: Each stage has a folder in ``work_dir/stages``.
        jobs: Stages at a time; None: one per GPU, or one per core without GPUs, at most 8.
        prefix: Words before each command.
        say: Takes lines of progress.

    Raises:
        ConfigError: fewer jobs than one.
    """

    def __init__(
        self,
        work_dir: PathLike,
        jobs: Optional[int] = None,
        prefix: Sequence[str] = (),
        say: Callable[[str], None] = functools.partial(print, flush=True),
    ):
        if jobs is not None and jobs < 1:
            raise ConfigError(f'jobs (--jobs) must be 1 or more, got {jobs}; left out, it follows from the machine.')
        self.folder = Path(work_dir) / 'stages'
        self.gpus = 0 if prefix else torch.cuda.device_count()
        self.jobs = jobs or (self.gpus or min(cores(), 8))
        self.threads = max(1, cores() // self.jobs)
        self.prefix, self._say, self.started = tuple(prefix), say, time.time()
        self._stop = threading.Event()
        self._running: Dict[Stage, Tuple[float, Worker]] = {}
        self._slots: queue.Queue[int] = queue.Queue()
        for slot in range(self.jobs):
            self._slots.put(slot)

    def say(self, text: str) -> None:
        self._say(f'[{(time.time() - self.started) / 60:6.1f} min] {text}')

    def path(self, stage: Stage) -> Path:
        return self.folder / stage.key

    def result(self, stage: Stage) -> Optional[dict]:
        """Of a stage that is done, else None."""
        record = self.path(stage) / 'result.json'
        return json.loads(record.read_text()) if record.is_file() else None

    def run(
        self, stages: Sequence[Stage], estimate: Callable[[Stage], Optional[float]] = lambda stage: None
    ) -> Dict[str, dict]:
        """Results by name of these stages and of all that they need.

        Args:
            estimate: Minutes of a stage on one worker, if they can be told.

        Raises:
            StageError: of the first stage that failed; what ran beside it has been finished and is kept.
        """
        todo = _in_order(stages)
        results = {stage.name: found for stage in todo if (found := self.result(stage)) is not None}
        known = len(results)
        if known:
            self.say(f'{known} of {len(todo)} stages were done before')
        waiting = [stage for stage in todo if stage.name not in results]
        failed: Optional[BaseException] = None
        futures: Dict[Future, Stage] = {}
        beat = time.time()
        with ThreadPoolExecutor(self.jobs) as pool, _on_terminate(self._interrupt):
            try:
                while waiting or futures:
                    for stage in [s for s in waiting if all(n.name in results for n in s.needs)]:
                        if failed or len(futures) >= self.jobs:
                            break
                        waiting.remove(stage)
                        futures[pool.submit(self._attempt, stage, {n.name: results[n.name] for n in stage.needs})] = (
                            stage
                        )
                    if not futures:
                        break
                    done, _ = wait(futures, timeout=1.0, return_when=FIRST_COMPLETED)
                    for future in done:
                        stage = futures.pop(future)
                        try:
                            found = future.result()
                        except Exception as error:
                            if not failed:
                                self.say(f'{stage.name} failed: what runs is finished first')
                            failed = failed or error
                            continue
                        if found is None:  # another process has it
                            waiting.append(stage)
                            continue
                        results[stage.name] = found
                        left = self._left(waiting, estimate)
                        self.say(
                            f'{stage.name}: done in {found.get("minutes", 0):.1f} min ({len(results)} of {len(todo)} '
                            'stages' + (f', about {left:.0f} min left)' if left is not None and waiting else ')')
                        )
                    if time.time() - beat > HEARTBEAT and (self._running or not done):
                        beat = time.time()
                        left = self._left(waiting, estimate)
                        self.say(self._status() + ('' if left is None else f'; about {left:.0f} min left'))
            except BaseException as stopped:
                self._interrupt()
                if isinstance(stopped, (KeyboardInterrupt, SystemExit)):
                    self.say(
                        f'interrupted: {len(results)} of {len(todo)} stages are done and kept; what runs writes a '
                        'checkpoint first. The same command goes on from there'
                    )
                raise
        if failed:
            raise failed
        return results

    def _attempt(self, stage: Stage, needed: Dict[str, dict]) -> Optional[dict]:
        """The stage's result; None after a pause if another process works on it."""
        folder = self.path(stage)
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / 'lock', os.O_RDWR | os.O_CREAT, 0o666)
        slot = self._slots.get()
        worker = Worker(self.prefix, self._environment(slot), lock, self._stop)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._stop.wait(BUSY)
                return None
            found = self.result(stage)
            if found is not None:
                return found
            if self._stop.is_set():
                raise StageError(f'{stage.name} is not begun.')
            atomic_write_text(folder / 'settings.json', json.dumps(stage.settings, indent=1, default=str))
            begun = time.time()
            self._running[stage] = (begun, worker)
            found = stage.work(worker, folder, needed)
            found['minutes'] = round((time.time() - begun) / 60, 3)
            found['ran_on'] = machines(folder)
            atomic_write_text(folder / 'result.json', json.dumps(found, indent=1))
            return found
        finally:
            self._running.pop(stage, None)
            self._slots.put(slot)
            os.close(lock)

    def _environment(self, slot: int) -> Dict[str, str]:
        environment = {'OMP_NUM_THREADS': str(self.threads)}
        if self.gpus:
            visible = os.environ.get('CUDA_VISIBLE_DEVICES')
            names = visible.split(',') if visible else [str(i) for i in range(self.gpus)]
            environment['CUDA_VISIBLE_DEVICES'] = names[slot % len(names)]
        return environment

    def _left(self, waiting: Sequence[Stage], estimate: Callable) -> Optional[float]:
        """Minutes, if all that is left can be estimated."""
        total, longest = 0.0, 0.0
        for stage in waiting:
            minutes = estimate(stage)
            if minutes is None:
                return None
            total += minutes
            longest = max(longest, minutes)
        for stage, (begun, _) in list(self._running.items()):
            minutes = estimate(stage)
            if minutes is None:
                return None
            total += max(minutes - (time.time() - begun) / 60, 0.0)
        return max(total / self.jobs, longest)

    def _status(self) -> str:
        parts = []
        for stage, (begun, worker) in list(self._running.items()):
            where = worker.progress()
            parts.append(f'{stage.name} {(time.time() - begun) / 60:.1f} min' + (f' ({where})' if where else ''))
        return 'running: ' + ', '.join(parts) if parts else 'nothing runs here: waiting for stages of other processes'

    def _interrupt(self) -> None:
        """No stage is begun any more, and what trains writes a checkpoint and ends."""
        self._stop.set()
        for _, worker in list(self._running.values()):
            for process in list(worker.processes):
                process.terminate()


@contextmanager
def _on_terminate(call: Callable[[], None]) -> Iterator[None]:
    """SIGTERM ends this process with code 75, after ``call``."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number, frame):
        call()
        raise SystemExit(INTERRUPTED)

    former = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def _in_order(stages: Sequence[Stage]) -> List[Stage]:
    """The stages and all that they need, each after what it needs."""
    found: Dict[str, Stage] = {}

    def add(stage: Stage) -> None:
        if stage.name in found:
            if found[stage.name].key != stage.key:
                raise ValueError(f'two stages are named {stage.name}')
            return
        for need in stage.needs:
            add(need)
        found[stage.name] = stage

    for stage in stages:
        add(stage)
    return list(found.values())


def scalars(folder: Path) -> List[dict]:
    """All scalar records that training in ``folder`` wrote, in order of time."""
    files = sorted(folder.glob('*/vis_data/scalars.json')) or sorted(folder.glob('*/vis_data/[0-9]*.json'))
    return [record for file in files for record in read_records(file)]


def exports(folder: Path) -> List[Path]:
    """The ``*_backbone.pth`` of all checkpoints in ``folder``, oldest first; ``best_*_backbone.pth`` are left out.

    Raises:
        StageError: there is none.
    """
    # epoch_1_iter_57, of an interruption, comes before epoch_2
    numbers = {path: [int(n) for n in re.findall(r'\d+', path.stem)] for path in folder.glob('*_backbone.pth')}
    found = sorted((path for path in numbers if not path.name.startswith('best_')), key=lambda path: numbers[path])
    if not found:
        raise StageError(f'no *_backbone.pth in {folder}: the pretraining wrote no checkpoint.')
    return found


def machines(folder: Path) -> List[str]:
    """Where the trainings in ``folder`` ran, with versions, from their logs: another machine than this one behind
    ``srun``, several if it was resumed elsewhere."""
    told = []
    for log in sorted(folder.rglob('[0-9]*/[0-9]*.log')):
        lines = log.read_text(errors='replace').splitlines()
        told += [line.partition(MACHINE)[2].strip() for line in lines if MACHINE in line]
    return list(dict.fromkeys(told))


def remove_attempt(folder: Path) -> None:
    """Remove what an earlier attempt of an unfinished stage left: it cannot be continued."""
    if folder.is_dir():
        shutil.rmtree(folder)
