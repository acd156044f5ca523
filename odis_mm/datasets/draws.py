"""Which views of an image are drawn: a number that travels with the index, through any sampler and any wrapper of data
sets.

A data set that makes random views has to be told more than an index: an image that is drawn again must give other
views. Three parts see to that, and each works without the others:

- samplers of ours yield :class:`Draw`, an integer that also knows its epoch;
- :class:`DrawnDataset` hands the draw past whatever stands around the data set (``ConcatDataset``, ``RepeatDataset``,
  ...);
- a plain index, from a sampler that was not told to number its draws, gives the views of the image's next draw (see
  ``ObjectDataset``).

:func:`number_draws` puts the first two into the config of a loader, so that every image has the same views with any
number of workers and in a resumed run.
"""

import itertools
import threading
from typing import Any, Iterator, List, Optional, Sequence, Tuple

from mmengine.dist import get_dist_info
from mmpretrain.registry import DATA_SAMPLERS, DATASETS
from torch.utils.data import Dataset, Sampler

from ..utils.errors import ConfigError

_ENDLESS = ('InfiniteSampler', 'ClassAwareSampler', 'GroupSampler')
_current = threading.local()


class Draw(int):
    """An index, the epoch in which it is drawn, and, where an epoch may draw it more than once, the number of the
    draw."""

    epoch: int
    number: Optional[int]

    def __new__(cls, index: int, epoch: int, number: Optional[int] = None) -> 'Draw':
        draw = super().__new__(cls, index)
        draw.epoch, draw.number = epoch, number
        return draw

    def __reduce__(self) -> Tuple[type, Tuple[int, int, Optional[int]]]:
        return Draw, (int(self), self.epoch, self.number)


def seed_of(index: int) -> Optional[Tuple[int, Tuple[int, ...]]]:
    """Return the epoch of an index and what else, beside the image, decides its views; None for a plain index outside a
    DrawnDataset."""
    outer = getattr(_current, 'draw', None)
    if outer is not None:  # two positions of a wrapper may be one image
        return outer.epoch, (int(outer), 0 if outer.number is None else outer.number + 1)
    if isinstance(index, Draw):
        return index.epoch, () if index.number is None else (int(index), index.number + 1)
    return None


@DATASETS.register_module()
class DrawnDataset(Dataset):
    """A data set, usually of several, whose :class:`Draw` reaches the images inside; everything else is the data set's
    own.

    Args:
        dataset: Config of the outermost wrapper.
    """

    def __init__(self, dataset: dict):
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        _current.draw = index if isinstance(index, Draw) else None
        try:
            return self.dataset[int(index)]
        finally:
            _current.draw = None

    def paths_of(self, ids: Sequence[int]) -> List[str]:
        """Return the paths of the images with these `img_id`s; of several, where data sets share an id."""
        found = [part.paths_of(ids) for part in object_datasets(self.dataset)]
        return [' or '.join(path for path in paths if path) for paths in zip(*found)]

    def __getattr__(self, name: str) -> Any:
        if name == 'dataset':  # not there yet: a copy is being made
            raise AttributeError(name)
        return getattr(self.dataset, name)


@DATA_SAMPLERS.register_module()
class NumberedSampler(Sampler):
    """Any sampler, its indices as :class:`Draw` with their number within the epoch: no two draws give the same views.

    Args:
        dataset: What is sampled.
        sampler: Config of the sampler.
        seed: Of the sampler, if it takes one.
    """

    def __init__(self, dataset: Dataset, sampler: dict, seed: Optional[int] = None):
        self.sampler = DATA_SAMPLERS.build(dict(sampler), default_args=dict(dataset=dataset, seed=seed))
        self.rank, self.world_size = get_dist_info()
        self.endless = type(self.sampler).__name__ in _ENDLESS
        self.epoch, self.start, self.position = 0, 0, 0

    def __iter__(self) -> Iterator[Draw]:
        indices, self.start = itertools.islice(self.sampler, self.start, None), 0
        for index in indices:
            number = self.rank + self.world_size * self.position
            self.position += 1
            yield Draw(index, self.epoch, number)

    def __len__(self) -> int:
        return len(self.sampler)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; called by mmengine's ``DistSamplerSeedHook`` before each epoch."""
        if epoch != self.epoch and not self.endless:
            self.epoch, self.position = epoch, 0
        if hasattr(self.sampler, 'set_epoch'):
            self.sampler.set_epoch(epoch)

    def start_at(self, images: int) -> int:
        """Let the next epoch begin after its first ``images`` (of all ranks); return what is left for each rank.

        Raises:
            ConfigError: the sampler's order is not a function of the epoch, so that its first images cannot be told
                again.
        """
        if not hasattr(self.sampler, 'set_epoch'):
            raise ConfigError(
                f'the checkpoint was written in the middle of an epoch, whose order {type(self.sampler).__name__} '
                'cannot repeat: set '
                "train_dataloader.sampler.type='EpochSampler', or resume from an epoch_N.pth."
            )
        self.skip(images // self.world_size)
        return max(0, len(self) - self.start)

    def skip(self, num_samples: int) -> None:
        """Leave out the first ``num_samples`` of this rank (mmengine's ``IterBasedTrainLoop`` calls it when it
        resumes)."""
        self.start = self.position = num_samples


def object_datasets(dataset: Any) -> List[Any]:
    """Return the data sets of images with objects inside any wrappers, each once."""
    parts = vars(dataset).get('datasets') or [
        vars(dataset)[name] for name in ('dataset', '_dataset') if name in vars(dataset)
    ]
    if not parts:
        return [dataset] if hasattr(dataset, 'bad_images') else []
    found = {id(inner): inner for part in parts for inner in object_datasets(part)}
    return list(found.values())


def number_draws(loader: dict, by_epoch: bool = True) -> None:
    """Have the draws of a loader of images with objects numbered: changes its config in place, unless it is right as it
    is.

    Args:
        loader: Config of a training loader.
        by_epoch: Whether the loop counts in epochs.

    Raises:
        ConfigError: the loop would wait for ever for the end of an epoch.
    """
    dataset, sampler = loader.get('dataset'), loader.get('sampler')
    if not isinstance(dataset, dict) or not isinstance(sampler, dict) or not _has_objects(dataset):
        return
    name = str(sampler.get('type')).rpartition('.')[2]
    inner = str((sampler.get('sampler') or {}).get('type')).rpartition('.')[2]
    if by_epoch and {name, inner} & set(_ENDLESS):
        raise ConfigError(
            f'train_dataloader.sampler: {inner if name == "NumberedSampler" else name} has no end, so an epoch would '
            'never end; set '
            "train_dataloader.sampler.type='EpochSampler', or train_cfg.type='IterBasedTrainLoop'."
        )
    if not issubclass(_class(dataset['type']), (DrawnDataset, _object_dataset())):
        _share_metainfo(dataset)
        loader['dataset'] = dict(type='DrawnDataset', dataset=dataset)
    if name not in ('EpochSampler', 'NumberedSampler'):
        loader['sampler'] = dict(type='NumberedSampler', sampler=sampler)


def _object_dataset() -> type:
    return DATASETS.get('ObjectDataset')


def _class(name: Any) -> type:
    found = name if isinstance(name, type) else DATASETS.get(str(name))
    return found if isinstance(found, type) else object


def _has_objects(dataset: Any) -> bool:
    if not isinstance(dataset, dict) or 'type' not in dataset:
        return False
    inner = [dataset.get('dataset'), *(dataset.get('datasets') or ())]
    return issubclass(_class(dataset['type']), _object_dataset()) or any(map(_has_objects, inner))


def _share_metainfo(dataset: dict) -> None:
    """Class names, which pretraining does not use, may differ between the parts of a ``ConcatDataset``."""
    if str(dataset.get('type')).rpartition('.')[2] == 'ConcatDataset':
        dataset.setdefault('ignore_keys', ['classes'])
    for part in [dataset.get('dataset'), *(dataset.get('datasets') or ())]:
        if isinstance(part, dict):
            _share_metainfo(part)
