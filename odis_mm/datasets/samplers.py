"""Which image is drawn when."""

from typing import Iterator, Optional, Sequence, Sized

import numpy as np
from mmengine.dist import get_dist_info, sync_random_seed
from mmpretrain.registry import DATA_SAMPLERS
from torch.utils.data import Sampler

from ..utils.errors import ConfigError
from .draws import Draw


@DATA_SAMPLERS.register_module()
class EpochSampler(Sampler):
    """Every image once per epoch, as a :class:`Draw`, so that workers learn the epoch.

    Rank r of w takes positions r, r + w, r + 2w, ... of one shuffled list: batch k of w ranks with b images each holds
    the images of batch k of one rank with w b. All ranks have the same count, and none draws an image of another: what
    is left over, fewer images than ranks, waits for another epoch's order. With ``drop_last`` the loader leaves out the
    rest of the last global batch, too, so that the batches of an epoch do not depend on the number of ranks.

    Args:
        shuffle: A new order each epoch, a function of seed and epoch alone.
        seed: None: drawn by rank 0 and shared.
        weights: Of a ``ConcatDataset``: shares of the draws that its data sets get, one each, of any sum. An epoch then
            has as many draws as before; the images of a small share wait for another epoch, those of a large one are
            drawn again, with other views.

    Raises:
        ConfigError: no image, or weights that do not fit the data.
    """

    def __init__(
        self,
        dataset: Sized,
        shuffle: bool = True,
        seed: Optional[int] = None,
        weights: Optional[Sequence[float]] = None,
    ):
        if len(dataset) == 0:
            raise ConfigError('the dataset holds no image: check its paths and filters')
        self.rank, self.world_size = get_dist_info()
        self.length, self.shuffle, self.epoch = len(dataset), shuffle, 0
        self.start = 0  # of the next epoch only
        self.seed = sync_random_seed() if seed is None else seed
        self.bounds, self.shares = None, None
        if weights is not None:
            ends = getattr(dataset, 'cumulative_sizes', None)
            if ends is None or len(ends) != len(weights):
                found = 'one data set' if ends is None else f'a ConcatDataset of {len(ends)}'
                raise ConfigError(
                    f'EpochSampler: weights={list(weights)} must be one number for each data set of a ConcatDataset; '
                    f'the training data is {found}.'
                )
            shares = np.array(weights, np.float64)
            if not (np.isfinite(shares).all() and (shares >= 0).all() and shares.sum() > 0):
                raise ConfigError(f'EpochSampler: weights={list(weights)} must be 0 or more, and one of them above 0.')
            self.bounds, self.shares = [0, *ends], shares / shares.sum()

    def __iter__(self) -> Iterator[Draw]:
        order = self._order()
        positions = self.start + self.rank + self.world_size * np.arange(self._left())
        self.start, epoch = 0, self.epoch
        if self.shares is None:
            return (Draw(index, epoch) for index in order[positions].tolist())
        return (Draw(index, epoch, at) for index, at in zip(order[positions].tolist(), positions.tolist()))

    def _order(self) -> np.ndarray:
        rng = np.random.default_rng((self.seed, self.epoch))
        if self.shares is None:
            return rng.permutation(self.length) if self.shuffle else np.arange(self.length)
        ends = np.rint(np.cumsum(self.shares) * self.length).astype(np.int64)
        parts = []
        for first, last, count in zip(self.bounds, self.bounds[1:], np.diff(ends, prepend=0).tolist()):
            size, rounds = last - first, []
            while count > 0:
                rounds.append(first + (rng.permutation(size) if self.shuffle else np.arange(size))[:count])
                count -= size
            parts += rounds
        order = np.concatenate(parts)
        return rng.permutation(order) if self.shuffle else order

    def start_at(self, images: int) -> int:
        """Let the next epoch begin after its first ``images``, whatever number of ranks took them; return what is left
        for each rank."""
        self.start = images
        return self._left()

    def _left(self) -> int:
        return max(0, self.length - self.start) // self.world_size

    def __len__(self) -> int:
        return self.length // self.world_size

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; called by mmengine's ``DistSamplerSeedHook`` before each epoch."""
        self.epoch = epoch
