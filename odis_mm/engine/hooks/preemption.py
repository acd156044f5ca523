"""Leaving on a signal without losing anything: a scheduler that wants the machine back, or Ctrl-C."""

import os
import signal
import threading
from typing import Optional, Sequence

import torch
from mmengine.dist import all_reduce, barrier
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop
from mmpretrain.registry import HOOKS

from ...datasets.workers import GROUP_SIGNAL_NAMES
from ...utils.errors import INTERRUPTED, ConfigError
from ..optim import ends_step
from .checkpoint import SafeCheckpointHook

REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: a temporary failure, try again
DUE = 'validation_due'  # the key in checkpoints


@HOOKS.register_module()
class PreemptionHook(Hook):
    """On a signal, write a checkpoint after the running optimizer step, or the running batch of a validation, and exit;
    ``--resume`` continues from it exactly.

    Of a validation that was cut short nothing is kept but that it is due: the resumed run begins with it. So it does
    with the last validation of a run that has all its steps, however it ended.

    The exit code is 75 (try again) for a scheduler's signals and 130 for Ctrl-C, which a job script must not requeue. A
    second Ctrl-C ends the run at once, without a checkpoint. Of the ranks, one that got the signal is enough. Under
    SLURM: ``#SBATCH --signal=USR1@120`` and a job script that calls ``scontrol requeue $SLURM_JOB_ID`` when the code is
    75. (torchrun reports any failure of its ranks as 1.)

    Args:
        signals: Names of the signals, of those that loader workers leave to the run
            (``odis_mm.datasets.workers.GROUP_SIGNALS``).
        interval: Several GPUs ask each other after every so many optimizer steps, and at the end of an epoch: asking
            waits for the device. One process, or CPUs, look after each.

    Raises:
        ConfigError: unknown signals, an interval below 1, or no ``SafeCheckpointHook`` beside it.
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
        self.checkpoints: Optional[SafeCheckpointHook] = None  # in training
        self._former = {}
        self._due = False  # a validation
        self._shared_batches = 0  # of the running validation, which all ranks have

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        checkpoint[DUE] = self._due

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        self._due = bool(runner._resume and checkpoint.get(DUE))

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
        done = runner.iter if isinstance(runner.train_loop, IterBasedTrainLoop) else runner.epoch
        if done and (self._due or _is_last(runner, done)) and _validates(runner, done):
            runner.logger.info('the run goes on with the validation that the checkpoint was written before')
            runner.val_loop.run()
        self._due = False

    def _note(self, number, frame) -> None:
        if number == signal.SIGINT:
            if self.received == signal.SIGINT:
                raise KeyboardInterrupt
            # print() must not be called in a handler, which may interrupt another one
            os.write(
                2, b'Ctrl-C: a checkpoint after this step or batch, then the run ends; once more ends it at once.\n'
            )
        self.received = number

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs: Optional[dict] = None) -> None:
        if not ends_step(runner.optim_wrapper):
            return  # half a step's gradients are in no checkpoint
        steps = (runner.iter + 1) // getattr(runner.optim_wrapper, '_accumulative_counts', 1)
        if runner.world_size > 1 and torch.cuda.is_available() and steps % self.interval:
            return
        by_iteration = isinstance(runner.train_loop, IterBasedTrainLoop)
        if (by_iteration or not self.end_of_epoch(runner.train_dataloader, batch_idx)) and self.is_wanted(runner):
            self._due = by_iteration and _validates(runner, runner.iter + 1)
            self.checkpoints.save_now(runner, runner.iter + 1)
            self._leave(runner)

    def after_train_epoch(self, runner) -> None:
        by_iteration = isinstance(runner.train_loop, IterBasedTrainLoop)  # all is done
        if not by_iteration and self.is_wanted(runner):
            self._due = _validates(runner, runner.epoch + 1)
            self.checkpoints.save_epoch(runner)
            self._leave(runner)

    def before_val_epoch(self, runner) -> None:
        if self.checkpoints is not None:
            batches = torch.tensor(len(runner.val_dataloader))
            if runner.world_size > 1:
                all_reduce(batches, 'min')
            self._shared_batches = int(batches)

    def after_val_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        if self.checkpoints is None or batch_idx >= self._shared_batches or not ends_step(runner.optim_wrapper):
            return  # an evaluation alone; or the other ranks do not ask; or half a step's gradients wait
        if runner.world_size > 1 and torch.cuda.is_available() and (batch_idx + 1) % self.interval:
            return
        if self.is_wanted(runner):
            self._due = True
            self.checkpoints.save_now(runner, runner.iter)
            self._leave(runner)

    def after_train(self, runner) -> None:
        self.put_back()

    def put_back(self) -> None:
        """Handle signals as before the training; of one that failed, whoever called it does this."""
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former, self.checkpoints = {}, None

    def is_wanted(self, runner) -> bool:
        """Return whether any rank got a signal; then every rank knows whether it was Ctrl-C."""
        if runner.world_size > 1:
            received = torch.tensor(0 if self.received is None else 2 if self.received == signal.SIGINT else 1)
            all_reduce(received, 'max')
            self.code = {0: None, 1: REQUEUE, 2: INTERRUPTED}[int(received)]
        elif self.received is not None:
            self.code = INTERRUPTED if self.received == signal.SIGINT else REQUEUE
        return self.code is not None

    def _leave(self, runner) -> None:
        name = signal.Signals(self.received).name if self.received else 'a signal to another rank'
        first = ' with the validation, from its beginning' if self._due else ''
        runner.logger.warning(
            f'{name}: checkpoint {self.checkpoints.last_ckpt} is written; exiting with code {self.code}, --resume '
            f'continues{first}'
        )
        barrier()  # rank 0 may still be writing
        self.after_train(runner)
        raise SystemExit(self.code)


def _validates(runner, done: int) -> bool:
    """Whether a validation follows after so many epochs, or iterations of a loop that counts them."""
    loop = runner.train_loop
    if runner.val_loop is None or done < getattr(loop, 'val_begin', 1):
        return False
    return done % getattr(loop, 'val_interval', 1) == 0 or _is_last(runner, done)


def _is_last(runner, done: int) -> bool:
    loop = runner.train_loop
    return done >= (loop.max_iters if isinstance(loop, IterBasedTrainLoop) else loop.max_epochs)
