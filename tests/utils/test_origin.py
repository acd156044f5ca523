"""A resumed run keeps the record of what it started from."""

import pytest
from mmengine.config import Config

from odis_mm.utils.errors import CheckpointError, ConfigError
from odis_mm.utils.origin import check_method, resumed_start, start_of


def written(folder, checkpoint):
    folder.mkdir()
    init_cfg = None if checkpoint is None else dict(type='VerifiedPretrained', checkpoint=str(checkpoint))
    model = dict(type='A', neck=dict(init_cfg=dict(checkpoint='other')), backbone=dict(type='B', init_cfg=init_cfg))
    Config(dict(default_scope='mmdet', model=model, notes=['a'])).dump(str(folder / 'run.py'))
    (folder / 'iter_3.pth').touch()
    return folder / 'run.py'


@pytest.mark.parametrize('checkpoint', ['a.pth', 'torchvision://resnet50', None])
def test_the_start_is_read_as_mmengine_writes_it(checkpoint, tmp_path):
    assert start_of(written(tmp_path / 'run', checkpoint)) == checkpoint


def test_another_start_is_refused(tmp_path):
    first, other = tmp_path / 'first.pth', tmp_path / 'other.pth'
    first.touch(), other.touch()
    run, random = written(tmp_path / 'run', first), written(tmp_path / 'random', None)
    fetched = written(tmp_path / 'fetched', 'torchvision://resnet50')
    assert resumed_start(run, None) == resumed_start(run, first) == first
    assert resumed_start(run, None, ['model.backbone.init_cfg.checkpoint']) is None, 'the options name it again'
    assert resumed_start(random, None) is resumed_start(fetched, None) is None
    for config, said in ((run, str(first)), (random, 'random weights'), (fetched, 'torchvision://resnet50')):
        with pytest.raises(ConfigError, match=f'--init .*other.pth: the run in .* started from {said} and goes on'):
            resumed_start(config, other)
    (tmp_path / 'random' / 'iter_3.pth').unlink()
    assert resumed_start(random, other) == other, 'nothing to continue'


def test_another_method_is_refused(tmp_path):
    run = written(tmp_path / 'run', None)
    check_method(run, 'mmpretrain.A'), check_method(tmp_path / 'none.py', 'B')
    with pytest.raises(ConfigError, match='the run in .*run is one of A, .* as mmpretrain.B: name its method'):
        check_method(run, 'mmpretrain.B')


def test_a_start_that_moved_is_named_again(tmp_path):
    run, moved = written(tmp_path / 'run', tmp_path / 'first.pth'), tmp_path / 'run' / 'first.pth'
    with pytest.raises(CheckpointError, match='which is gone'):
        resumed_start(run, None)
    moved.touch()
    assert resumed_start(run, moved) == moved


def test_a_config_that_was_broken_by_hand_is_named(tmp_path):
    run = written(tmp_path / 'run', None)
    run.write_text('model = dict(')
    with pytest.raises(ConfigError, match=r'run\.py, which tells .* cannot be read as Python'):
        resumed_start(run, None)
