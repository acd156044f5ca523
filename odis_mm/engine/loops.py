"""Training by epochs that a resumed run continues where it stopped, mid-epoch as well."""

import itertools
import math
import random
from typing import Any, Dict, Optional

import numpy as np
import torch
from mmengine.dist import all_gather_object, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop
from mmpretrain.registry import LOOPS

from ..datasets.workers import held_while_forking
from ..utils.errors import ConfigError
from ..utils.words import count

PROGRESS = 'progress'  # the key in checkpoints


def random_state() -> Dict[str, Any]:
    """Return the states of the global random number generators, of tensors and plain values only."""
    kind, keys, *rest = np.random.get_state()
    state = dict(
        python=random.getstate(),
        numpy=[kind, torch.from_numpy(keys.astype(np.int64)), *rest],
        torch=torch.get_rng_state(),
    )
    if torch.cuda.is_available():
        state['cuda'] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: Dict[str, Any]) -> None:
    """Put back what :func:`random_state` gave."""
    version, keys, gauss = state['python']
    random.setstate((version, tuple(keys), gauss))
    kind, keys, *rest = state['numpy']
    np.random.set_state((kind, keys.cpu().numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state['torch'].cpu())
    if 'cuda' in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state['cuda'].cpu())


@LOOPS.register_module()
class ResumableEpochLoop(EpochBasedTrainLoop):
    """mmengine's ``EpochBasedTrainLoop``; its checkpoints also hold the images done in the epoch, and all ranks' random
    states.

    A run that is resumed on as many ranks is the run that was not interrupted, bit for bit on CPU. On another number of
    ranks, or with another batch size, the epoch goes on after the images that were done: none is lost or drawn twice.
    Where gradients accumulate, an epoch ends with an optimizer step, of the iterations that are left.

    Args:
        max_epochs: The length in epochs.
        max_iters: The length in iterations in its place, for recipes that serve data sets of very different sizes; the
            last epoch ends where they are done.

    Raises:
        ConfigError: both lengths are given, or none, or a part of an epoch or iteration.
    """

    def __init__(self, runner, dataloader, max_epochs: Optional[int] = None, max_iters: Optional[int] = None, **kwargs):
        if (max_epochs is None) == (max_iters is None):
            raise ConfigError(
                f'train_cfg needs one length, max_epochs or max_iters; it has max_epochs={max_epochs} and '
                f'max_iters={max_iters}: set the one that the config names.'
            )
        if max_epochs is not None and max_epochs != int(max_epochs):
            raise ConfigError(
                f'train_cfg.max_epochs={max_epochs} is no whole number: set train_cfg.max_iters to the length in '
                'iterations, and max_epochs=None.'
            )
        if max_iters is not None and max_iters != int(max_iters):
            raise ConfigError(f'train_cfg.max_iters={max_iters} is no whole number of iterations.')
        super().__init__(runner, dataloader, max_epochs=1 if max_epochs is None else max_epochs, **kwargs)
        self.last = None if max_iters is None else int(max_iters)  # iteration; None: that of the last epoch
        if self.last is not None:
            self._max_epochs, self._max_iters = math.ceil(self.last / max(1, len(self.dataloader))), self.last
        self.images_done = 0  # of this epoch, by all ranks
        self.began = 0  # the iteration at which this epoch began: a former one may have been cut short by max_iters
        self.loaded: Optional[dict] = None
        self.random: list = []  # of all ranks, when the last checkpoint was written
        self.runner.register_hook(_ProgressHook(self))

    @property
    def global_batch(self) -> int:
        """Images an iteration, all ranks."""
        return (self.dataloader.batch_size or self.dataloader.batch_sampler.batch_size) * get_world_size()

    def run(self) -> torch.nn.Module:
        if self.last is not None:
            # a run of fewer iterations that is resumed may have ended within an epoch
            done = math.ceil(self.loaded['images'] / self.global_batch) if self.loaded else 0
            self._max_epochs = self._epoch + math.ceil((self.last - self._iter + done) / len(self.dataloader))
        return super().run()

    def run_epoch(self) -> None:
        self.runner.call_hook('before_train_epoch')
        if hasattr(self.dataloader.sampler, 'set_epoch'):  # DistSamplerSeedHook may have been removed
            self.dataloader.sampler.set_epoch(self._epoch)
        self.runner.model.train()
        first, loaded = 0, self.loaded
        self.loaded = None
        if loaded:
            if loaded['images']:
                first = self._skip(loaded)
            self.restore(loaded)
        self.began = self._iter - first
        if hasattr(self.runner.optim_wrapper, 'begin_epoch'):
            stop = self.began + len(self.dataloader)
            self.runner.optim_wrapper.begin_epoch(self._iter, stop if self.last is None else min(stop, self.last))
        state = torch.get_rng_state()
        with held_while_forking(self.dataloader):
            batches = iter(self.dataloader)  # draws a number, or not, depending on what its workers did before
        torch.set_rng_state(state)
        if self.last is not None:
            batches = itertools.islice(batches, self.last - self._iter)
        for index, batch in enumerate(batches, first):
            self.run_iter(index, batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1
        self.images_done, self.began = 0, self._iter

    def run_iter(self, idx, data_batch) -> None:
        self.images_done += self.global_batch  # the hooks of this iteration may write a checkpoint
        super().run_iter(idx, data_batch)

    def begin_at(self, images: int) -> int:
        """Return the number of the iteration in its epoch that comes after so many images of all ranks.

        Raises:
            ConfigError: the sampler cannot go on within an epoch.
        """
        if not images:
            return 0
        sampler = self.dataloader.sampler
        if not hasattr(sampler, 'start_at'):
            raise ConfigError(
                f'the checkpoint was written in the middle of an epoch, where {type(sampler).__name__} cannot go on: '
                'set '
                "train_dataloader.sampler.type='EpochSampler', or resume from an epoch_N.pth."
            )
        left = sampler.start_at(images)
        size = self.global_batch // get_world_size()
        return len(self.dataloader) - (left // size if self.dataloader.drop_last else math.ceil(left / size))

    def _skip(self, loaded: dict) -> int:
        """Tell the sampler where to go on; return the number of the first iteration to come in this epoch."""
        self.images_done = loaded['images']
        first = self.begin_at(self.images_done)
        ranks = loaded['ranks']
        changed = '' if ranks == get_world_size() else f' (written by {count(ranks, "rank")}, now {get_world_size()})'
        rest = (
            'none is lost or drawn twice'
            if loaded.get('same_order', True)
            else 'the rest of it is drawn in the new order, so some images come twice and others not'
        )
        self.runner.logger.info(
            f'epoch {self._epoch + 1} goes on after {self.images_done} of {len(self.dataloader.dataset)} '
            f'images{changed}: {rest}'
        )
        return first

    def restore(self, loaded: dict) -> None:
        if get_rank() < len(loaded['random']):
            set_random_state(loaded['random'][get_rank()])

    def gather_random_states(self) -> None:
        """Collect all ranks' random states for the checkpoint to come; all ranks call this (``SafeCheckpointHook``
        does)."""
        self.random = all_gather_object(random_state())


class _ProgressHook(Hook):
    """Hands what the loop knows to checkpoints, and back."""

    def __init__(self, loop: ResumableEpochLoop):
        self.loop = loop

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        between = checkpoint['meta']['epoch'] > self.loop.epoch
        checkpoint[PROGRESS] = dict(
            images=0 if between else self.loop.images_done,
            began=checkpoint['meta']['iter'] if between else self.loop.began,
            ranks=get_world_size(),
            random=self.loop.random,
        )

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        if runner._resume:
            self.loop.loaded = checkpoint.get(PROGRESS)
            if hasattr(runner.optim_wrapper, 'begin_epoch'):
                # a file without an iteration is refused by the hook that comes next
                done = checkpoint.get('meta', {}).get('iter', 0)
                runner.optim_wrapper.begin_epoch(done, self.loop.max_iters)
