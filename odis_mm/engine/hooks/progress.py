"""Throughput beside mmengine's own ETA."""
from typing import Optional

from mmengine.hooks import Hook
from mmpretrain.registry import HOOKS


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
