"""A run on several data sets, with samplers that know nothing of draws: every hook and the loop cope."""

import copy

import pytest

from odis_mm import apis
from odis_mm.config import load_config, parse_options
from odis_mm.utils.errors import ConfigError

TINY = [
    'train_dataloader.batch_size=4',
    'train_dataloader.num_workers=0',
    'train_cfg.max_epochs=2',
    'param_scheduler=[]',
    'model.backbone.arch.num_layers=1',
    'default_hooks.checkpoint.interval=9',
    'default_hooks.views=None',
    'log_level=WARNING',
]


def config(demo, sampler):
    cfg = load_config('odis_demo', {**parse_options(TINY), 'train_dataloader.dataset.data_root': demo})
    one = cfg.train_dataloader.dataset
    plain = copy.deepcopy(one)
    plain.ann_file = ''
    cfg.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[one, plain])
    cfg.train_dataloader.sampler = sampler
    return cfg


@pytest.mark.parametrize(
    'sampler', [dict(type='EpochSampler', weights=[3, 1]), dict(type='DefaultSampler', shuffle=True)]
)
def test_a_run_on_two_data_sets(demo, tmp_path, sampler):
    runner = apis.train(config(demo, sampler), work_dir=str(tmp_path))
    assert runner.epoch == 2 and runner.iter == 2 * (32 // 4)


def test_an_epoch_without_an_end_is_refused(demo, tmp_path):
    with pytest.raises(ConfigError, match='InfiniteSampler has no end'):
        apis.train(config(demo, dict(type='InfiniteSampler')), work_dir=str(tmp_path))
