"""Values of --cfg-options, and the sentences for options that would load nothing or be taken letter by letter."""

import math

import pytest
from mmengine.config import Config

from odis_mm import apis
from odis_mm.config import apply_options, check_init, load_config, parse_options
from odis_mm.utils.errors import ConfigError


@pytest.mark.parametrize(
    'text, value',
    [
        ('1', 1),
        ('1e-4', 1e-4),
        ('-0.5', -0.5),
        ('None', None),
        ('True', True),
        ('false', False),
        ('bbox', 'bbox'),
        ("('person','traffic light')", ('person', 'traffic light')),
        ("['/my data/x']", ['/my data/x']),
        ('[traffic light, person]', ['traffic light', 'person']),
        ('(traffic light,)', ('traffic light',)),
        ('/my data/x', '/my data/x'),
        ('/my, own data/x', '/my, own data/x'),
        ('(old) data/x', '(old) data/x'),
        ('bbox,segm', ['bbox', 'segm']),
        ('[bbox,segm]', ['bbox', 'segm']),
        ('0.9,0.95', [0.9, 0.95]),
        ('(0.9, 0.95)', (0.9, 0.95)),
        ('[(480, 1333), (800, 1333)]', [(480, 1333), (800, 1333)]),
        ('[(a b, 1), c]', [('a b', 1), 'c']),
        ("{'a': [1, 'b c']}", {'a': [1, 'b c']}),
        ("'1'", '1'),
        ('3,', [3]),
        ('cat,', ['cat']),
        ('', ''),
        ('1j', '1j'),
        ('007', '007'),
        ('a=b', 'a=b'),
        ("it's", "it's"),
        ('/data/épi de blé', '/data/épi de blé'),
    ],
)
def test_values_are_python_literals_or_text(text, value):
    parsed = parse_options([f'key={text}'])['key']
    assert parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize(
    'option, told',
    [
        ('train_dataloader.batch_size=abc', "a whole number from 1, not 'abc'"),
        ('train_dataloader.batch_size=0', 'a whole number from 1, not 0'),
        ('train_dataloader.num_workers=-1', 'a whole number from 0, not -1'),
        ('optim_wrapper.optimizer.lr=-1', 'a number from 0, not -1'),
        ('optim_wrapper.optimizer.lr=nan', 'a number from 0, not nan'),
        ('optim_wrapper.optimizer.lr=1e-3x', "a number from 0, not '1e-3x'"),
        ('optim_wrapper.optimizer.weight_decay=-1', 'a number from 0, not -1'),
        ('optim_wrapper.accumulative_counts=0', 'a whole number from 1, not 0'),
        ('optim_wrapper.accumulative_counts=1.5', 'a whole number from 1, not 1.5'),
        ('optim_wrapper.clip_grad.max_norm=x', "a number from 0, not 'x'"),
        ('auto_scale_lr.base_batch_size=0', 'a whole number from 1, not 0'),
        ('train_cfg.max_epochs=-1', 'a number from 0, not -1'),
        ('+train_cfg.max_iters=x', "a number from 0, not 'x'"),
        ('default_hooks.logger.interval=0', 'a whole number from 1, not 0'),
        ('randomness.seed=-1', 'a whole number from 0, not -1'),
        ('default_hooks.schedule.weight_decay_end=-1', 'a number from 0, not -1'),
        ('model.lambda_pool=-1', 'a number from 0, not -1'),
        ('default_hooks.health.interval=x', "a whole number from 1, not 'x'"),
    ],
)
def test_numbers_that_are_none_are_refused_by_key(option, told):
    with pytest.raises(ConfigError, match=f'^{option.partition("=")[0].lstrip("+")} must be {told}'):
        load_config('odis_demo', parse_options([option]))


@pytest.mark.parametrize(
    'option, told',
    [
        *((f'{key}=None', f'^{key} must be a dict, not None') for key in ('env_cfg', 'model', 'randomness')),
        ('log_level=FOO', "^log_level must be .* not 'FOO'"),
        ('launcher=pytorch', 'launcher would change nothing: say --launcher'),
    ],
)
def test_top_level_values_that_are_none_are_refused_by_key(option, told):
    with pytest.raises(ConfigError, match=told):
        load_config('odis_demo', parse_options([option]))


def test_infinity_is_a_number():
    assert parse_options(['a=inf', 'b=-inf', 'c=nan'])['b'] == -math.inf


def detector() -> Config:
    return Config(dict(train_dataloader=dict(dataset=dict(type='CocoDataset', metainfo=dict(classes=('a', 'b'))))))


def test_class_names_are_a_list(tmp_path):
    key = 'train_dataloader.dataset.metainfo.classes'
    for text, names in (('wheat head', "('wheat head',)"), ('car, traffic light', "('car', 'traffic light')")):
        with pytest.raises(ConfigError, match='must be a list') as caught:
            apply_options(detector(), parse_options([f'{key}={text}']))
        assert f'"{key}={names}"' in str(caught.value)
    cfg = detector()
    apply_options(cfg, parse_options([f"{key}=('person', 'traffic light')"]))
    assert tuple(cfg.train_dataloader.dataset.metainfo.classes) == ('person', 'traffic light')
    (tmp_path / 'names.txt').write_text('wheat head')
    apply_options(cfg, {key: str(tmp_path / 'names.txt')})  # mmdet reads such a file


@pytest.mark.parametrize('name', ['epoch_3.pth', 'work_dirs/a/model.safetensors'])
def test_a_checkpoint_is_no_config(name):
    with pytest.raises(ConfigError, match=f'{name} is a checkpoint where a config is expected'):
        load_config(name)


@pytest.mark.parametrize(
    'init_cfg, told',
    [
        (
            dict(type='Pretrained', checkpoint='https://a.b/c.pth'),
            'loads what happens to fit, and not the teacher.*--init FILE',
        ),
        (dict(checkpoint='https://a.b/c.pth'), 'model.backbone.init_cfg = .* has no type.*by --init FILE'),
    ],
)
def test_weights_that_would_not_reach_the_teacher_are_refused(init_cfg, told, tmp_path):
    with pytest.raises(ConfigError, match=told):
        apis.train('odis_demo', work_dir=str(tmp_path), options={'model.backbone.init_cfg': init_cfg})


def test_init_cfg_without_a_type_in_a_detector():
    cfg = Config(dict(model=dict(type='MaskRCNN', backbone=dict(init_cfg=dict(checkpoint='F')))))
    with pytest.raises(ConfigError, match="add model.backbone.init_cfg.type='VerifiedPretrained'"):
        check_init(cfg)


def test_a_folder_named_by_a_number_is_put_in_quotes():
    key = 'train_dataloader.dataset.data_prefix'
    with pytest.raises(ConfigError, match=f'2017 was read as a number; write "{key}=\'NAME\'"'):
        load_config('odis_demo', parse_options([f'{key}=2017']))
    assert load_config('odis_demo', parse_options([f"{key}='2017'"])).train_dataloader.dataset.data_prefix == '2017'
