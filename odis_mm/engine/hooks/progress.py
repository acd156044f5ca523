"""What a run tells about itself, without making the device wait for the host."""

from typing import List, Optional

import numpy as np
import torch
from mmengine.hooks import Hook, RuntimeInfoHook
from mmengine.logging import HistoryBuffer, MessageHub
from mmpretrain.registry import HOOKS
from torch import Tensor


@HOOKS.register_module()
class ProgressHook(Hook):
    """Adds two columns to the log, TensorBoard and W&B: ``images/s`` of all ranks and ``data_wait``, the share of time
    in which the training step waits for the data loader.

    Both are computed on the host from the times that ``IterTimerHook`` took; nothing waits for the device. A
    data_wait that stays above 0.1 asks for more ``train_dataloader.num_workers`` or faster storage.

    Args:
        window: Average over so many iterations, like the losses of the log.
    """

    priority = 55  # after IterTimerHook (NORMAL, 50) has taken the time, before LoggerHook (BELOW_NORMAL, 60) prints it

    def __init__(self, window: int = 10):
        self.window = window

    def before_train(self, runner) -> None:
        loader = runner.train_dataloader
        # mmdet's loaders are built with a batch sampler: they have no batch size of their own
        self.images = (loader.batch_size or loader.batch_sampler.batch_size) * runner.world_size

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs: Optional[dict] = None) -> None:
        hub = runner.message_hub
        seconds = hub.get_scalar('train/time').mean(self.window)
        if seconds > 0:
            hub.update_scalar('train/images/s', self.images / seconds)
            hub.update_scalar('train/data_wait', hub.get_scalar('train/data_time').mean(self.window) / seconds)


class DeferredHistory(HistoryBuffer):
    """A history of scalars whose newest ones may still be under way on the device: whoever reads it waits for them, all at once.

    In checkpoints it is a plain ``HistoryBuffer``.
    """

    def __init__(self, *args, **kwargs):
        self._pending: List[Tensor] = []
        super().__init__(*args, **kwargs)

    def append(self, value: Tensor) -> None:
        """Adds a tensor of one number, without a look at it."""
        self._pending.append(value.detach())

    @property
    def _log_history(self) -> np.ndarray:  # all that the base class does begins with this
        if self._pending:
            values = torch.stack([value.float().reshape(()) for value in self._pending]).tolist()
            self._pending = []
            self._values = np.append(self._values, values)[-self.max_length :]
            self._count_history = np.append(self._count_history, np.ones(len(values), self._count_history.dtype))[
                -self.max_length :
            ]
        return self._values

    @_log_history.setter
    def _log_history(self, values: np.ndarray) -> None:
        self._values = values

    @property
    def data(self):
        return self._log_history, self._count_history  # in this order: the first completes the second

    def __reduce__(self):
        return HistoryBuffer, (*self.data, self.max_length)

    def __deepcopy__(self, memo) -> HistoryBuffer:
        return HistoryBuffer(*self.data, self.max_length)


def defer_scalar(hub: MessageHub, key: str, value: Tensor) -> None:
    """``hub.update_scalar(key, value)`` that waits for no device but in the first call for a key."""
    history = hub.log_scalars.get(key)
    if isinstance(history, DeferredHistory):
        return history.append(value)
    hub.update_scalar(key, value)
    hub.log_scalars[key] = DeferredHistory(*hub.log_scalars[key].data)


@HOOKS.register_module()
class DeferredInfoHook(RuntimeInfoHook):
    """mmengine's ``RuntimeInfoHook``, which waits for the device at every iteration to read the losses and the gradient's norm: here they are
    read when the log, a checkpoint or another hook asks for them. The values are the same.
    """

    def before_train(self, runner) -> None:
        super().before_train(runner)
        for wrapper in (
            runner.optim_wrapper.values() if hasattr(runner.optim_wrapper, 'values') else [runner.optim_wrapper]
        ):
            if getattr(wrapper, 'clip_grad_kwargs', None) and not isinstance(wrapper.clip_func, _DeferredNorm):
                wrapper.clip_func = _DeferredNorm(wrapper)

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs: Optional[dict] = None) -> None:
        for key, value in (outputs or {}).items():
            if isinstance(value, Tensor):
                defer_scalar(runner.message_hub, f'train/{key}', value)
            else:
                runner.message_hub.update_scalar(f'train/{key}', value)


class _DeferredNorm:
    """An optimizer wrapper's clipping, whose norm is logged later: it returns None, as for ``clip_grad.type='value'``."""

    def __init__(self, wrapper):
        self.clip, self.hub, self.key = wrapper.clip_func, wrapper.message_hub, f'train/{wrapper.grad_name}'

    def __call__(self, parameters, **kwargs) -> None:
        norm = self.clip(parameters, **kwargs)
        if norm is not None:
            defer_scalar(self.hub, self.key, norm)
