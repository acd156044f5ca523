"""Tells the log which images could not be used."""

from typing import Dict, Optional, Set

from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmpretrain.registry import HOOKS

from ...datasets import object_datasets, read_image
from ...utils.errors import BadImageError, ConfigError


@HOOKS.register_module()
class BadImageHook(Hook):
    """Logs each bad image once, with its path and the reason, and stops the run when all ranks together met too many.

    For an ``ObjectDataset`` or ``DetectionDataset`` with ``max_bad_share``; with other data sets there is nothing to
    tell.

    Args:
        interval: Iterations between two looks; the ends of an epoch and of the run are looked at, too.

    Raises:
        BadImageError: more images are bad than the data set's ``max_bad_share`` allows; the message lists them.
    """

    # before checkpoints: what stops the run here is no reason to lose the epoch, but comes first
    priority = 'BELOW_NORMAL'

    def __init__(self, interval: int = 50):
        if interval < 1:
            raise ConfigError(f'BadImageHook: interval must be at least 1, got {interval}.')
        self.interval = interval
        self.told: Dict[int, Set[int]] = {}  # by number of the data set: its images

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs: Optional[dict] = None) -> None:
        if (runner.iter + 1) % self.interval == 0 or self.end_of_epoch(runner.train_dataloader, batch_idx):
            self.look(runner)

    def after_train(self, runner) -> None:
        self.look(runner)  # a run counted in iterations may end inside an epoch

    def look(self, runner) -> None:
        """Share what the ranks found, and tell what is new."""
        for number, dataset in enumerate(object_datasets(runner.train_dataloader.dataset)):
            if dataset.bad is None:
                continue
            if runner.world_size > 1:
                found = dataset.bad.clone()
                all_reduce(found, 'max')
                dataset.bad.copy_(found)
            told = self.told.setdefault(number, set())
            for index in dataset.bad.nonzero().flatten().tolist():
                if index not in told:
                    told.add(index)
                    path = dataset.get_data_info(index)['img_path']
                    runner.logger.warning(
                        f'bad image replaced by another one ({len(told)} of {len(dataset)} so far): {_reason(path)}'
                    )
            dataset.check_bad_share()


def _reason(path: str) -> str:
    try:
        read_image(path)
    except BadImageError as error:
        return str(error)
    return f'image {path} can be read now, but could not be, or its size is not the one of its annotation.'
