"""Leaving on a signal without losing anything: a scheduler that wants the machine back, or Ctrl-C."""

import os
import signal
import threading
from typing import Optional, Sequence

import torch
from mmengine.dist import all_reduce, barrier
from mmengine.hooks import Hook
from mmpretrain.registry import HOOKS

from ...datasets.workers import GROUP_SIGNAL_NAMES
from ...utils.errors import INTERRUPTED, ConfigError
from .checkpoint import SafeCheckpointHook

REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: a temporary failure, try again


@HOOKS.register_module()
class PreemptionHook(Hook):
    """On a signal, write a checkpoint after the running optimizer step and exit; ``--resume`` continues from it
    exactly.

    The exit code is 75 (try again) for a scheduler's signals and 130 for Ctrl-C, which a job script must not requeue. A
    second Ctrl-C ends the run at once, without a checkpoint. Of the ranks, one that got the signal is enough. Under
    SLURM: ``#SBATCH --signal=USR1@120`` and a job script that calls ``scontrol requeue $SLURM_JOB_ID`` when the code is
    75. (torchrun reports any failure of its ranks as 1.)

    Args:
        signals: Names of the signals, of those that loader workers leave to the run
            (``odis_mm.datasets.workers.GROUP_SIGNALS``).
        interval: Several GPUs ask each other after every so many optimizer steps, and at the end of an epoch: asking
            waits for the device. One process, or CPUs, look after each.
    """

    priority = 95  # after the checkpoint hook (VERY_LOW, 90): an epoch's own checkpoint is not written twice

    def __init__(self, signals: Sequence[str] = ('SIGTERM', 'SIGUSR1', 'SIGINT'), interval: int = 10):
        self.signals = [getattr(signal, name) for name in signals if hasattr(signal, name)]
        if not set(GROUP_SIGNAL_NAMES).issuperset(signals) or interval < 1:
            known = ', '.join(sorted(GROUP_SIGNAL_NAMES))
            raise ConfigError(
                f'PreemptionHook: signals must be among {known}, interval at least 1; got {", ".join(signals)}; '
                f'{interval}.'
            )
        self.interval = interval
        self.received: Optional[int] = None
        self.code: Optional[int] = None  # of the exit
        self._former = {}

    def before_train(self, runner) -> None:
        found = [hook for hook in runner.hooks if isinstance(hook, SafeCheckpointHook)]
        if not found:
            raise ConfigError(
                'PreemptionHook saves through a SafeCheckpointHook, and there is none: set '
                "default_hooks.checkpoint.type='SafeCheckpointHook', or remove the hook "
                '(default_hooks.preemption=None).'
            )
        self.checkpoints = found[0]
        if threading.current_thread() is threading.main_thread():  # Python allows no other to handle signals
            self._former = {number: signal.signal(number, self._note) for number in self.signals}

    def _note(self, number, frame) -> None:
        if number == signal.SIGINT:
            if self.received == signal.SIGINT:
                raise KeyboardInterrupt
            # print() must not be called in a handler, which may interrupt another one
            os.write(2, b'Ctrl-C: a checkpoint after this step, then the run ends; once more ends it at once.\n')
        self.received = number

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs: Optional[dict] = None) -> None:
        steps, left = divmod(runner.iter + 1, getattr(runner.optim_wrapper, '_accumulative_counts', 1))
        if left:
            return  # half a step's gradients are in no checkpoint
        if runner.world_size > 1 and torch.cuda.is_available() and steps % self.interval:
            return
        if not self.end_of_epoch(runner.train_dataloader, batch_idx) and self.is_wanted(runner):
            self.checkpoints.save_now(runner)
            self._leave(runner)

    def after_train_epoch(self, runner) -> None:
        if self.is_wanted(runner):
            self.checkpoints.save_epoch(runner)
            self._leave(runner)

    def after_train(self, runner) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}

    def is_wanted(self, runner) -> bool:
        """Whether any rank got a signal; then every rank knows whether it was Ctrl-C."""
        if runner.world_size > 1:
            received = torch.tensor(0 if self.received is None else 2 if self.received == signal.SIGINT else 1)
            all_reduce(received, 'max')
            self.code = {0: None, 1: REQUEUE, 2: INTERRUPTED}[int(received)]
        elif self.received is not None:
            self.code = INTERRUPTED if self.received == signal.SIGINT else REQUEUE
        return self.code is not None

    def _leave(self, runner) -> None:
        name = signal.Signals(self.received).name if self.received else 'a signal to another rank'
        runner.logger.warning(
            f'{name}: checkpoint {self.checkpoints.last_ckpt} is written; exiting with code {self.code}, --resume '
            'continues'
        )
        barrier()  # rank 0 may still be writing
        self.after_train(runner)
        raise SystemExit(self.code)
