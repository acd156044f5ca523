#!/usr/bin/env python
"""Kills, full disks and damaged files by the hundred, and whether training comes to the same end all the same.

A tiny ODIS run goes through the command line (``odis_mm train CONFIG --resume``) once undisturbed, then again and again
disturbed, until the counts are reached. Each attempt is a process of its own, forked from one that has imported
everything: what takes a run half a minute of starting is done once. A disturbed run goes on, by ``--resume`` and
nothing else, until it has finished; its last checkpoint and its export must then equal those of the undisturbed run bit
for bit.

Processes are killed and files damaged, the machine is not: what a loss of power does to data that was not synced is not
shown here.
"""

import argparse
import builtins
import errno
import gc
import os
import random
import resource
import select
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

if __name__ == '__main__':
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # a checkout works without being installed
    os.environ['OMP_NUM_THREADS'] = '1'  # one thread: this process is forked

import mmengine.hooks.checkpoint_hook as upstream
import mmengine.runner.runner
import mmpretrain.datasets
import mmpretrain.engine
import mmpretrain.visualization  # noqa: F401
import torch
import yapf.yapflib.yapf_api

from odis_mm import cli
from odis_mm.config import load_config
from odis_mm.datasets.demo import ensure_demo
from odis_mm.engine.hooks import checkpoint as safe
from odis_mm.engine.loops import ResumableEpochLoop
from odis_mm.engine.resume import NOTE, NUMBERED, damage
from odis_mm.transfer import allow_mmengine_histories
from odis_mm.utils import files as export
from odis_mm.utils.errors import ConfigError

EPOCHS, EVENTS_PER_RUN = 5, 12
OPTIONS = {  # a ViT of two blocks, five epochs of four iterations
    'train_dataloader.batch_size': 4,
    'train_dataloader.num_workers': 0,
    'train_cfg.max_epochs': EPOCHS,
    'param_scheduler.0.end': 1,
    'param_scheduler.1.begin': 1,
    'default_hooks.logger.interval': 1,
    'default_hooks.views': None,  # pictures would take most of the time
    'model.backbone.arch.num_layers': 2,
    'model.backbone.arch.embed_dims': 32,
    'model.backbone.arch.feedforward_channels': 64,
    'model.backbone.drop_path_rate': 0.2,
    'model.neck.in_channels': 32,
    'model.neck.hidden_channels': 32,
    'model.neck.bottleneck_channels': 16,
    'model.neck.num_prototypes': 24,
    'model.head.num_prototypes': 24,
    'model.head.balance': 'center',
}
# inside the writing of a checkpoint, in order; the last one is that of the exported backbone
STAGES = (
    'opened',
    'partly written',
    'synced',
    'read back',
    'renamed',
    'note emptied',
    'before removal',
    'after removal',
    'export synced',
)
DAMAGES = ('cut', 'flipped', 'zeroed', 'empty', 'garbage', 'missing')
SIGNALS = ('SIGTERM', 'SIGUSR1')
PREEMPTED, KILLED = 75, -signal.SIGKILL


@dataclass(frozen=True)
class Event:
    """One disturbance of one attempt.

    Attributes:
        kind: 'instant' or 'writing' (SIGKILL), 'tmpfs', 'limit' or 'injected' (disk full), 'signal' (preemption).
        share: In [0, 1): when, or how much is written before.
        stage: Of STAGES, for 'writing'.
        signal: SIGTERM or SIGUSR1, for 'signal'; for 'writing' too, when the checkpoint is one within an epoch.
        nth: The stage counts when it is reached for the nth time.
    """

    kind: str
    share: float = 0.0
    stage: str = ''
    signal: str = ''
    nth: int = 1


class CampaignError(RuntimeError):
    """Something that a run must not do; the message says which attempt of which run, and where its log is."""


# ---- in the attempt
class _Stages:
    """Stops the process at one place of its way, tells the campaign and waits for its answer, or for the end."""

    def __init__(self, event: Event, report: int, answer: int):
        self.event, self.report, self.answer = event, report, answer
        self.waits = {}
        if event.signal:
            self.waits['iteration'] = 1 + int(event.share * 6)
        if event.stage:
            self.waits[event.stage] = event.nth

    def reach(self, name: str) -> None:
        if name in self.waits:
            self.waits[name] -= 1
            if not self.waits[name]:
                os.write(self.report, f'{name}\n'.encode())
                os.read(self.answer, 1)

    def install(self) -> None:
        reach, share, full = self.reach, self.event.share, self.event.kind == 'injected'

        class Writer:
            """A file that takes its bytes in two pieces."""

            def __init__(self, file):
                self.file = file
                reach('opened')

            def __getattr__(self, name):
                return getattr(self.file, name)

            def __enter__(self):
                return self

            def __exit__(self, *args):
                self.file.close()

            def write(self, content):
                cut = int(share * len(content))
                self.file.write(content[:cut])
                self.file.flush()
                reach('partly written')
                if full:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                self.file.write(content[cut:])

        def opening(path, mode='r', *args, **kwargs):
            file = builtins.open(path, mode, *args, **kwargs)
            if mode == 'wb' and str(path).endswith(safe.PARTIAL):
                return Writer(file)
            if mode == 'w' and os.path.basename(path) == NOTE:
                reach('note emptied')
            return file

        class OS:
            """The module ``os``, with stages."""

            def __init__(self, synced):
                self.synced = synced

            def __getattr__(self, name):
                return getattr(os, name)

            def fsync(self, handle):
                os.fsync(handle)
                reach(self.synced)

            def replace(self, source, target):
                reach('read back')
                os.replace(source, target)
                reach('renamed')

        def settle(removal, do, real=safe.DeferredRemoval.settle):
            waiting = do and removal.waiting
            if waiting:
                reach('before removal')
            real(removal, do)
            if waiting:
                reach('after removal')

        def run_iter(loop, *args, real=ResumableEpochLoop.run_iter):
            reach('iteration')
            real(loop, *args)

        safe.open = upstream.open = opening
        safe.os = OS('synced')
        if self.event.stage == 'export synced':
            export.os = OS('export synced')
        safe.DeferredRemoval.settle = settle
        ResumableEpochLoop.run_iter = run_iter


def _attempt(config: Path, run: Path, log: Path, event: Event, limit: int, report: int, answer: int) -> int:
    """In the forked process: the command line, as a user would call it; returns its exit code."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    if event.kind == 'limit':
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    _Stages(event, report, answer).install()
    try:
        cli.main(['train', str(config), '--work-dir', str(run), '--resume', 'auto'])
        return 0
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 70


class Campaign:
    """See the module.

    Args:
        work_dir: Made anew; the data, the undisturbed run and the logs of the last attempts stay there.
        seed: Of events and instants. (Where an instant falls depends on the machine, too.)
    """

    def __init__(self, work_dir: Path, kills: int, disk_full: int, corrupt: int, signals: int, seed: int = 0):
        self.work_dir, self.rng = Path(work_dir), random.Random(seed)
        self.config, self.disk, self.log = (self.work_dir / name for name in ('campaign.py', 'disk', 'attempt.log'))
        self.kills, self.disk_full, self.corrupt, self.signals = kills, disk_full, corrupt, signals
        self.counts: Counter = Counter()
        self.mounted = False
        self.seconds, self.checkpoint_bytes = (
            0.0,
            0,
        )  # what the last attempt that was not disturbed took; what a checkpoint has

    def run(self) -> Dict[str, int]:
        """Counts by kind.

        Raises:
            CampaignError: a run did not resume, ended otherwise than it should, or differs from the undisturbed one.
        """
        self._prepare()
        signal.signal(signal.SIGTERM, lambda *_: sys.exit('ended by SIGTERM'))  # the disk is unmounted on the way out
        try:
            self.attempt(self.work_dir / 'undisturbed', Event('none'))
            self.checkpoint_bytes = (self.work_dir / 'undisturbed' / f'epoch_{EPOCHS}.pth').stat().st_size
            expected = content(self.work_dir / 'undisturbed')
            events = self._events()
            while events or self.corrupt > self.counts['damaged file']:
                if not events:  # the damage comes after a kill, with several checkpoints there
                    events.append(Event('writing', self.rng.random(), 'renamed', nth=3))
                folder = self.disk / f'run_{self.counts["disturbed runs compared"] + 1}'
                self._disturbed(folder, events)
                found = content(folder)
                wrong = differences(found, expected) + [
                    f'{path.name} was left behind' for path in folder.iterdir() if path.suffix in ('.part', '.tmp')
                ]
                if wrong:
                    raise CampaignError(f'{folder.name} differs from the undisturbed run: {"; ".join(wrong[:5])}')
                shutil.rmtree(folder)
                self.counts['disturbed runs compared'] += 1
                print(f'{folder.name} equals the undisturbed run; {len(events)} events to come', flush=True)
        finally:
            if self.mounted:
                subprocess.run(['umount', '-l', str(self.disk)], check=True)
        return dict(self.counts)

    def _prepare(self) -> None:
        threads = next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('Threads:'))
        if threads != 1:
            raise CampaignError(
                f'this process has {threads} threads and cannot be forked safely: run it with OMP_NUM_THREADS=1.'
            )
        torch.set_num_threads(1)
        if self.work_dir.exists() and any(self.work_dir.iterdir()):
            raise ConfigError(f'{self.work_dir} is not empty: the campaign needs a folder of its own.')
        self.disk.mkdir(parents=True)
        os.environ['ODIS_DEMO_ROOT'] = ensure_demo(self.work_dir / 'data', num_train=16, num_val=2, size=64)
        cfg = load_config('odis_demo', OPTIONS)
        cfg.default_hooks.checkpoint.max_keep_ckpts = 3
        cfg.dump(str(self.config))
        # not what is tested, and most of an attempt's time: pretty-printed configs, a description of the machine,
        # garbage of the imports
        gc.freeze()
        yapf.yapflib.yapf_api.FormatCode = lambda text, **_: (text, True)
        described = mmengine.runner.runner.collect_env()
        mmengine.runner.runner.collect_env = lambda: dict(described)
        mount = ['mount', '-t', 'tmpfs', '-o', 'size=32m', 'tmpfs', str(self.disk)]
        self.mounted = shutil.which('mount') is not None and subprocess.run(mount, capture_output=True).returncode == 0

    def _events(self) -> List[Event]:
        """All of them, in random order; of the kills, half are inside checkpoint writing, over all stages alike."""
        rng, full = self.rng, ('tmpfs', 'limit', 'injected') if self.mounted else ('limit', 'injected')
        inside = (self.kills + 1) // 2
        events = [Event('instant', rng.random()) for _ in range(self.kills - inside)]
        # the removal comes with the fourth checkpoint; every third checkpoint is one within an epoch, on a signal
        events += [
            Event(
                'writing',
                rng.random(),
                STAGES[i % len(STAGES)],
                SIGNALS[i % 2] if i % 3 == 0 and i % len(STAGES) < 6 else '',
                rng.choice((1, 1, 2)) if i % len(STAGES) < 6 else 1,
            )
            for i in range(inside)
        ]
        events += [Event(full[i % len(full)], rng.random()) for i in range(self.disk_full)]
        events += [Event('signal', rng.random(), signal=SIGNALS[i % 2]) for i in range(self.signals)]
        rng.shuffle(events)
        return events

    def _disturbed(self, folder: Path, events: List[Event]) -> None:
        """One run until it has finished; events that came too late to disturb it go back to the end of the list."""
        pending, disturbed = [], 0
        while True:
            quiet = disturbed >= EVENTS_PER_RUN or not events
            event = Event('none') if quiet else events.pop()
            code = self.attempt(folder, event, pending)
            if code == 0:
                if event.kind != 'none':
                    events.insert(0, replace(event, share=self.rng.random(), nth=1))
                if finished(folder):
                    return
                raise CampaignError(
                    f'{folder.name}: training ended with code 0 and without {EPOCHS} epochs; log: {self.log}'
                )
            disturbed += 1
            if event.kind == 'writing' and code == PREEMPTED:  # its checkpoint stood before the stage was reached
                events.insert(0, replace(event, share=self.rng.random(), nth=1))
                event = Event('signal', signal=event.signal)
            self._count(event)
            left = len(events) + 1
            if not pending and self.rng.random() < (self.corrupt - self.counts['damaged file']) / left * 3:
                pending = self._damage(folder)

    def _count(self, event: Event) -> None:
        name = {
            'instant': 'SIGKILL at a random instant',
            'writing': f'SIGKILL inside writing: {event.stage}',
            'signal': f'{event.signal}, exit code {PREEMPTED}',
        }.get(event.kind, f'disk full: {event.kind}')
        self.counts[name] += 1

    def attempt(self, run: Path, event: Event, pending: List[str] = ()) -> int:
        """One attempt; returns the exit code, -9 for a kill.

        Args:
            pending: What the log must warn of once the run resumes; emptied when it did.
        """
        had = [p for p in run.glob('*.pth') if NUMBERED.fullmatch(p.name)]
        ballast = self._fill(event.share) if event.kind == 'tmpfs' else None
        (report, child_report), (child_answer, answer) = os.pipe(), os.pipe()
        self.log.write_bytes(b'')  # a process may die before it opens it
        sys.stdout.flush()
        start = time.time()
        pid = os.fork()
        if not pid:
            code = 71
            try:
                os.close(report)
                os.close(answer)
                limit = int((0.2 + 0.7 * event.share) * self.checkpoint_bytes)  # of any file; logs are smaller
                code = _attempt(self.config, run, self.log, event, limit, child_report, child_answer)
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(code)
        os.close(child_report)
        os.close(child_answer)
        if event.kind == 'instant':
            select.select([report], [], [], event.share * self.seconds)  # ends early with the process
            os.kill(pid, signal.SIGKILL)
        for stage in _lines(report):
            if stage == 'iteration':
                os.kill(pid, getattr(signal, event.signal))
                os.write(answer, b'.')
            else:
                os.kill(pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        os.close(report)
        os.close(answer)
        if ballast:
            ballast.unlink()
        self.counts['attempts'] += 1
        if code == 0:
            self.seconds = time.time() - start
        self.check(run, event, code, bool(had), pending)
        return code

    def check(self, run: Path, event: Event, code: int, had: bool, pending: List[str]) -> None:
        """The attempt ended as it should, resumed if it could, and warned of what was damaged."""
        said = self.log.read_text(errors='replace') if self.log.exists() else ''
        where = f'{run.name}, attempt {self.counts["attempts"]}, {event}: '
        # before the hook is there, and after it has gone, these signals end a process as they always do
        expected = {'none': (0,), 'instant': (0, KILLED), 'writing': (0, KILLED, PREEMPTED), 'signal': (0, PREEMPTED)}
        expected = expected.get(event.kind, (0, 2))
        if code not in expected:
            raise CampaignError(f'{where}exit code {code} and not {" or ".join(map(str, expected))}; log: {self.log}')
        if code == 2 and not said.rstrip().splitlines()[-1].startswith('error: '):
            raise CampaignError(f'{where}no sentence at the end of {self.log}')
        if had and 'training starts at the beginning' in said:
            raise CampaignError(f'{where}there were checkpoints, and it started anew; log: {self.log}')
        if '--resume: continuing from' in said:
            self.counts['resumed'] += 1
            self.counts['warned, and took an older checkpoint'] += 'newest whole checkpoint instead' in said
            for text in pending:
                if text not in said or 'newest whole checkpoint instead' not in said:
                    raise CampaignError(f'{where}no warning that names {text}; log: {self.log}')
            if pending:
                pending.clear()

    def _fill(self, share: float) -> Path:
        """Leaves between nothing and one and a half checkpoints of room."""
        ballast, room = self.disk / 'ballast', int(share * 1.5 * self.checkpoint_bytes)
        free = shutil.disk_usage(self.disk).free
        with open(ballast, 'wb') as f:
            os.posix_fallocate(f.fileno(), 0, max(1, free - room))
        return ballast

    def _damage(self, folder: Path) -> List[str]:
        """Damages the newest checkpoint or the note that names it, where another whole one is left; returns what is to
        be warned of."""
        note = folder / NOTE
        whole = [p for p in folder.glob('*.pth') if NUMBERED.fullmatch(p.name) and damage(p) is None]
        # damaged already, if the run ended before it wrote another
        newest = Path(note.read_text(errors='replace')) if note.is_file() else None
        if len(whole) < 2 or newest not in whole:
            return []
        path = note if self.rng.random() < 0.3 else newest
        kind = self.rng.choice(DAMAGES)
        if kind == 'missing' and path == note:
            kind = 'empty'  # without the note, the newest one is taken: nothing to warn of
        spoil(path, kind, self.rng)
        if path != note and kind != 'missing' and damage(path) is None:
            raise CampaignError(f'{path} was {kind}, and that is not noticed')
        self.counts['damaged file'] += 1
        self.counts[f'damaged: {"last_checkpoint" if path == note else "the newest checkpoint"}, {kind}'] += 1
        if path == note:  # of a run that was moved, the folder in the note does not count
            named = os.path.basename(note.read_text(errors='replace').strip())
            return [] if named and os.path.isfile(folder / named) else [NOTE]
        return [path.name]


def spoil(path: Path, kind: str, rng: random.Random) -> None:
    """Damages a file in one of the ways of ``DAMAGES``."""
    size = path.stat().st_size
    if kind == 'missing':
        path.unlink()
    elif kind == 'flipped':
        with open(path, 'r+b') as f:
            for _ in range(rng.randint(1, 8)):
                position = rng.randrange(size)
                f.seek(position)
                byte = f.read(1)[0]
                f.seek(position)
                f.write(bytes([byte ^ rng.randint(1, 255)]))
    elif kind == 'cut':
        os.truncate(path, rng.randrange(1, size))
    else:
        path.write_bytes({'zeroed': bytes(size), 'empty': b'', 'garbage': rng.randbytes(size)}[kind])


def _lines(handle: int) -> Iterator[str]:
    """What an attempt reports, until it has ended."""
    with open(handle, 'rb', buffering=0, closefd=False) as pipe:
        while line := pipe.readline():
            yield line.decode().strip()


def finished(run: Path) -> bool:
    return (run / f'epoch_{EPOCHS}.pth').is_file()


def content(run: Path) -> Dict[str, Any]:
    """All that must be equal at the end of a run: weights, centers, optimizer, schedules, random states, position,
    export."""
    allow_mmengine_histories()
    loaded = torch.load(run / f'epoch_{EPOCHS}.pth', map_location='cpu', weights_only=True)
    exported = torch.load(run / f'epoch_{EPOCHS}_backbone.pth', map_location='cpu', weights_only=True)
    kept = {key: loaded[key] for key in ('state_dict', 'optimizer', 'param_schedulers', 'progress')}
    return {**kept, 'epoch': loaded['meta']['epoch'], 'iter': loaded['meta']['iter'], 'export': exported['state_dict']}


def differences(a: Any, b: Any, path: str = '') -> List[str]:
    """Names of what is not equal, bit for bit, in two nested containers of tensors and plain values."""
    if type(a) is not type(b):
        return [f'{path} is {type(a).__name__} and {type(b).__name__}']
    if isinstance(a, torch.Tensor):
        a_bytes, b_bytes = (t.contiguous().view(-1).view(torch.uint8) for t in (a, b))
        return [] if a.dtype == b.dtype and a.shape == b.shape and a_bytes.equal(b_bytes) else [path]
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return [f'{path} has other keys: {sorted(map(str, a.keys() ^ b.keys()))[:5]}']
        return [name for key in a for name in differences(a[key], b[key], f'{path}.{key}' if path else str(key))]
    if isinstance(a, (list, tuple)):
        if len(a) != len(b):
            return [f'{path} has {len(a)} and {len(b)} parts']
        return [name for i, pair in enumerate(zip(a, b)) for name in differences(*pair, f'{path}[{i}]')]
    return [] if a == b else [f'{path} is {a!r} and {b!r}']


def main(argv: Optional[List[str]] = None) -> None:
    """``robustness/fault_campaign.py --work-dir DIR``; exits with 1 on any difference."""
    parser = argparse.ArgumentParser(
        description='Disturbs a tiny pretraining run by the hundred and compares how it ends.'
    )
    parser.add_argument('--work-dir', type=Path, required=True, help='an empty or new folder')
    parser.add_argument('--kills', type=int, default=200, help='SIGKILLs, half of them inside checkpoint writing')
    parser.add_argument('--disk-full', type=int, default=50)
    parser.add_argument('--corrupt', type=int, default=50, help='damaged checkpoints and last_checkpoint files')
    parser.add_argument(
        '--signals', type=int, default=30, help='SIGTERM and SIGUSR1, answered with a checkpoint and exit code 75'
    )
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args(argv)
    start = time.time()
    campaign = Campaign(args.work_dir, args.kills, args.disk_full, args.corrupt, args.signals, args.seed)
    try:
        campaign.run()
    except CampaignError as error:
        print(f'FAILED: {error}', flush=True)
        sys.exit(1)
    finally:
        print(report(campaign.counts, time.time() - start), flush=True)


def report(counts: Dict[str, int], seconds: float) -> str:
    """The counts as a table."""
    totals: List[Tuple[str, int]] = [
        (f'all {name}', sum(n for kind, n in counts.items() if kind.startswith(name)))
        for name in ('SIGKILL at', 'SIGKILL inside', 'disk full', 'damaged:')
    ]
    rows = [(kind, n) for kind, n in sorted(counts.items()) if kind != 'damaged file'] + totals
    cpu = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return '\n'.join(
        [
            '| | count |',
            '|---|---|',
            *(f'| {kind} | {n} |' for kind, n in rows),
            '',
            f'{seconds / 60:.1f} minutes, {cpu / 60:.1f} of them computing',
        ]
    )


if __name__ == '__main__':
    main()
