"""Columns of the log, and reading scalars late enough that the device never waits for the host."""

from typing import Optional

from mmengine.hooks import Hook, RuntimeInfoHook
from mmpretrain.registry import HOOKS
from torch import Tensor

from ..deferred import defer_scalar


@HOOKS.register_module()
class ProgressHook(Hook):
    """Log ``images/s`` of all ranks and ``data_wait``, the share of time in which the training step waits for the data
    loader.

    Both come from the times that ``IterTimerHook`` took on the host; nothing waits for the device. If data_wait stays
    above 0.1, raise ``train_dataloader.num_workers`` or use faster storage.

    Args:
        window: Average over so many iterations, like the losses of the log.
    """

    priority = 55  # after IterTimerHook (NORMAL, 50) has taken the time, before LoggerHook (BELOW_NORMAL, 60) prints it

    def __init__(self, window: int = 10):
        self.window = window

    def before_train(self, runner) -> None:
        loader = runner.train_dataloader
        # mmdet's loaders are built with a batch sampler, and have no batch size of their own
        self.images = (loader.batch_size or loader.batch_sampler.batch_size) * runner.world_size

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs: Optional[dict] = None) -> None:
        hub = runner.message_hub
        if 'train/time' not in hub.log_scalars:  # no IterTimerHook
            return
        seconds = hub.get_scalar('train/time').mean(self.window)
        if seconds > 0:
            hub.update_scalar('train/images/s', self.images / seconds)
            hub.update_scalar('train/data_wait', hub.get_scalar('train/data_time').mean(self.window) / seconds)


@HOOKS.register_module()
class DeferredInfoHook(RuntimeInfoHook):
    """mmengine's ``RuntimeInfoHook``, except that losses are read from the device when the log, a checkpoint or a hook
    asks for them.

    mmengine's own reads each at every iteration, which makes the host wait. The values are the same. (The norm of the
    gradient is deferred by :class:`~odis_mm.engine.optim.SafeOptimWrapper`.) ``lr`` is the base rate, the one that the
    config sets and the schedulers move; mmengine logs it beside that of the first group of parameters, which with
    layer-wise rates is the lowest or the highest.
    """

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        runner.message_hub.update_info('iter', runner.iter)
        rates = runner.optim_wrapper.get_lr()  # several optimizers: with a prefix each
        for name, values in rates.items():
            if not name.endswith('base_lr'):
                base = rates.get(f'{name.removesuffix("lr")}base_lr', values)
                runner.message_hub.update_scalar(f'train/{name}', base[0])

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs: Optional[dict] = None) -> None:
        for key, value in (outputs or {}).items():
            if isinstance(value, Tensor):
                defer_scalar(runner.message_hub, f'train/{key}', value)
            else:
                runner.message_hub.update_scalar(f'train/{key}', value)
