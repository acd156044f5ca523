"""Which image is drawn when."""

from typing import Iterator, Optional, Sized

import numpy as np
from mmengine.dist import get_dist_info, sync_random_seed
from mmpretrain.registry import DATA_SAMPLERS
from torch.utils.data import Sampler

from ..utils.errors import ConfigError


@DATA_SAMPLERS.register_module()
class EpochSampler(Sampler):
    """Every image once an epoch, as ``draw = epoch * len(dataset) + index``, so that workers learn the epoch.

    Rank r of w takes positions r, r + w, r + 2w, ... of one shuffled list: batch k of w ranks with b images each holds
    the images of batch k of one rank with w b. All ranks have the same count, and none draws an image of another: what is left
    over, fewer images than ranks, waits for another epoch's order. With ``drop_last`` the loader leaves out the rest of the last
    global batch, too, so that the batches of an epoch do not depend on the number of ranks.

    Args:
        shuffle: A new order each epoch, a function of seed and epoch alone.
        seed: None: drawn by rank 0 and shared.
    """

    def __init__(self, dataset: Sized, shuffle: bool = True, seed: Optional[int] = None):
        if len(dataset) == 0:
            raise ConfigError('the dataset holds no image: check its paths and filters')
        self.rank, self.world_size = get_dist_info()
        self.length, self.shuffle, self.epoch = len(dataset), shuffle, 0
        self.start = 0  # of the next epoch only
        self.seed = sync_random_seed() if seed is None else seed

    def __iter__(self) -> Iterator[int]:
        order = np.arange(self.length)
        if self.shuffle:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(self.length)
        positions = self.start + self.rank + self.world_size * np.arange(self._left())
        self.start = 0
        return iter((self.epoch * self.length + order[positions]).tolist())

    def start_at(self, images: int) -> int:
        """Lets the next epoch begin after its first ``images``, whatever number of ranks took them; returns what is left for each rank."""
        self.start = images
        return self._left()

    def _left(self) -> int:
        return max(0, self.length - self.start) // self.world_size

    def __len__(self) -> int:
        return self.length // self.world_size

    def set_epoch(self, epoch: int) -> None:
        """Called by mmengine's ``DistSamplerSeedHook`` before each epoch."""
        self.epoch = epoch
