"""New views in every epoch, whatever samples and wraps the data; the same ones with any number of workers."""

import copy
import pickle

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmpretrain.registry import DATA_SAMPLERS
from torch.utils.data import DataLoader

from odis_mm.datasets import Draw, EpochSampler, ObjectDataset, number_draws, object_datasets
from odis_mm.utils.errors import ConfigError

VIEWS = [
    dict(type='LoadObjectImage'),
    dict(type='SampleViews', patch_size=8, views=[dict(role='global', num=1, size=16, scale=(0.1, 0.9))]),
    dict(type='RenderViews'),
    dict(type='PackViews'),
]


@DATA_SAMPLERS.register_module()
class WithReplacement:
    """As a user's own sampler might be: no epochs, no ranks, and some images twice."""

    def __init__(self, dataset, seed):
        self.count, self.rng = len(dataset), np.random.default_rng(seed)

    def __iter__(self):
        return iter(self.rng.integers(self.count // 4, size=self.count).tolist())

    def __len__(self):
        return self.count


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """Two folders of 32 images each, of noise, so that no two crops are equal."""
    root = tmp_path_factory.mktemp('folders')
    rng = np.random.default_rng(0)
    for name in 'ab':
        (root / name).mkdir()
        for i in range(32):
            cv2.imwrite(str(root / name / f'{i:02}.png'), rng.integers(0, 256, (40, 48, 3), dtype=np.uint8))
    return root


def one(folder, **kwargs) -> dict:
    return dict(type='ObjectDataset', data_root=str(folder), pipeline=copy.deepcopy(VIEWS), **kwargs)


def wrapped(folders) -> dict:
    """Name to (config of a data set of 64 positions, positions of an epoch)."""
    a, b = one(folders / 'a'), one(folders / 'b')
    return dict(
        plain=one(folders),
        concat=dict(type='ConcatDataset', datasets=[a, b]),
        repeat=dict(type='RepeatDataset', dataset=a, times=2),
        balanced=dict(type='ClassBalancedDataset', dataset=one(folders), oversample_thr=1e-3),
        nested=dict(type='RepeatDataset', times=2, dataset=dict(type='ConcatDataset', datasets=[a])),
    )


SAMPLERS = dict(
    epoch=dict(type='EpochSampler', shuffle=True),
    default=dict(type='DefaultSampler', shuffle=True),
    infinite=dict(type='InfiniteSampler', shuffle=True),
    weighted=dict(type='WithReplacement'),
)


def loader_of(dataset: dict, sampler: dict, workers: int = 0, numbered: bool = True) -> DataLoader:
    init_default_scope('mmpretrain')
    cfg = Config(
        dict(
            dataset=dataset,
            sampler=sampler,
            batch_size=8,
            num_workers=workers,
            persistent_workers=workers > 0,
            collate_fn=dict(type='collate_views'),
            worker_init_fn=dict(type='single_thread_worker'),
        )
    )
    if numbered:
        number_draws(cfg, by_epoch=sampler['type'] != 'InfiniteSampler')
    return Runner.build_dataloader(cfg, seed=3)


def epochs(loader: DataLoader, count: int = 2) -> list:
    """Views of each epoch, as bytes in the order in which they came."""
    drawn, batches = [], None
    for epoch in range(count):
        if hasattr(loader.sampler, 'set_epoch'):
            loader.sampler.set_epoch(epoch)
        endless = 'Infinite' in type(getattr(loader.sampler, 'sampler', loader.sampler)).__name__
        batches = batches if endless and batches else iter(loader)
        views = [view for _ in range(8) for view in next(batches)['inputs'][0]]
        drawn.append([view.numpy().tobytes() for view in views])
    return drawn


@pytest.mark.parametrize('sampler', SAMPLERS)
@pytest.mark.parametrize('wrapper', ['plain', 'concat', 'repeat', 'balanced', 'nested'])
def test_every_draw_gives_other_views(folders, wrapper, sampler):
    first, second = epochs(loader_of(wrapped(folders)[wrapper], SAMPLERS[sampler]))
    assert len(first) == 64 and len({*first, *second}) == 128


@pytest.mark.parametrize('wrapper', ['plain', 'concat', 'repeat'])
@pytest.mark.parametrize('sampler', ['epoch', 'default', 'infinite'])
def test_workers_change_nothing(folders, wrapper, sampler):
    expected = epochs(loader_of(wrapped(folders)[wrapper], SAMPLERS[sampler]))
    for workers in (1, 2):
        assert epochs(loader_of(wrapped(folders)[wrapper], SAMPLERS[sampler], workers)) == expected


def test_a_plain_dataset_and_sampler_stay_as_they_are(folders):
    cfg = dict(dataset=one(folders), sampler=dict(SAMPLERS['epoch']))
    number_draws(cfg)
    assert cfg == dict(dataset=one(folders), sampler=SAMPLERS['epoch'])
    stock = dict(dataset=dict(type='CustomDataset'), sampler=dict(type='DefaultSampler'))
    number_draws(stock)
    assert stock['sampler']['type'] == 'DefaultSampler', 'other data sets are left as they are'
    twice = dict(dataset=wrapped(folders)['concat'], sampler=dict(SAMPLERS['default']))
    number_draws(twice)
    once = copy.deepcopy(twice)
    number_draws(twice)
    assert twice == once, 'the config that a run leaves behind starts the same run'


@pytest.mark.parametrize('wrapper', ['plain', 'concat'])
@pytest.mark.parametrize('workers', [0, 2])
def test_a_loader_that_nobody_prepared_repeats_no_views_either(folders, wrapper, workers):
    dataset = wrapped(folders)[wrapper]
    dataset.setdefault('ignore_keys', ['classes']) if wrapper == 'concat' else None
    first, second = epochs(loader_of(dataset, SAMPLERS['default'], workers, numbered=False))
    assert len({*first, *second}) == 128


def test_weights_are_shares_of_the_draws(folders):
    loader = loader_of(wrapped(folders)['concat'], dict(type='EpochSampler', weights=[3, 1]))
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        drawn = np.array([int(draw) for draw in loader.sampler])
        assert (drawn < 32).sum() == 48 and (drawn >= 32).sum() == 16
        assert np.bincount(drawn[drawn < 32]).min() == 1 and len(set(drawn[drawn >= 32])) == 16
    first, second = epochs(loader)
    assert len({*first, *second}) == 128, 'images drawn twice an epoch have other views'
    with pytest.raises(ConfigError, match='one number for each data set of a ConcatDataset; .* a ConcatDataset of 2'):
        loader_of(wrapped(folders)['concat'], dict(type='EpochSampler', weights=[1]))
    with pytest.raises(ConfigError, match='the training data is one data set'):
        loader_of(one(folders), dict(type='EpochSampler', weights=[1]))
    with pytest.raises(ConfigError, match='above 0'):
        loader_of(wrapped(folders)['concat'], dict(type='EpochSampler', weights=[0, 0]))


@pytest.mark.parametrize('sampler', ['epoch', 'default'])
@pytest.mark.parametrize('wrapper', ['concat', 'repeat'])
def test_resumed_in_the_middle_of_an_epoch(folders, wrapper, sampler):
    whole = epochs(loader_of(wrapped(folders)[wrapper], SAMPLERS[sampler]))[1]
    resumed = loader_of(wrapped(folders)[wrapper], SAMPLERS[sampler])
    resumed.sampler.set_epoch(1)
    assert resumed.sampler.start_at(24) == 40
    views = [view.numpy().tobytes() for batch in resumed for view in batch['inputs'][0]]
    assert views == whole[24:]
    assert len(list(resumed)) == 8, 'the next epoch is a whole one'


def test_an_endless_sampler_is_skipped_forward(folders):
    whole = sum(epochs(loader_of(one(folders), SAMPLERS['infinite']), 3), [])
    resumed = loader_of(one(folders), SAMPLERS['infinite'])
    resumed.sampler.skip(72)
    assert epochs(resumed, 1)[0] == whole[72:136]


def test_what_cannot_work_is_refused(folders):
    cfg = dict(dataset=one(folders), sampler=dict(type='InfiniteSampler'))
    with pytest.raises(
        ConfigError, match='InfiniteSampler has no end, so an epoch would never end; set .*EpochSampler'
    ):
        number_draws(cfg)
    number_draws(cfg, by_epoch=False)
    with pytest.raises(ConfigError, match='has no end'):
        number_draws(cfg)


def test_a_draw_is_an_index(folders):
    draw = Draw(7, 2, 9)
    assert (draw, draw.epoch, draw.number) == (7, 2, 9) and list('abcdefgh')[draw] == 'h'
    again = pickle.loads(pickle.dumps(draw))
    assert (again, again.epoch, again.number) == (7, 2, 9)
    dataset = ObjectDataset(folders, pipeline=[lambda results: results['rng'].integers(1 << 40)])
    key = np.random.default_rng((0, 2, 7)).integers(1 << 40)
    assert dataset[Draw(7, 2)] == key == dataset[Draw(7, 2)]
    assert dataset[7] == np.random.default_rng((0, 0, 7)).integers(1 << 40) != dataset[7]
    for beyond in (-1, 64):
        with pytest.raises(IndexError, match=f'no image {beyond} among 64'):
            dataset[beyond]
    assert len(list(EpochSampler(dataset, seed=0))) == 64


def test_wrapped_data_sets_are_found(folders):
    loader = loader_of(wrapped(folders)['nested'], SAMPLERS['epoch'])
    found = object_datasets(loader.dataset)
    assert [type(part).__name__ for part in found] == ['ObjectDataset'] and len(found[0]) == 32
    concat = loader_of(wrapped(folders)['concat'], SAMPLERS['epoch']).dataset
    assert len(object_datasets(concat)) == 2
    assert concat.paths_of([3]) == [f'{folders}/a/03.png or {folders}/b/03.png']
    assert copy.deepcopy(concat).metainfo == concat.metainfo
    assert torch.utils.data.get_worker_info() is None
