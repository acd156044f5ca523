"""Recipes resolve, name classes and arguments that exist, hold the published numbers; misspelt keys are named."""

import functools
import inspect
import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from mmengine.config import Config

from odis_mm import apis, config
from odis_mm.config import apply_options, check_schedule, check_top_level, explain_build_error
from odis_mm.utils.errors import ConfigError
from odis_mm.utils.nested import walk

PRETRAINING = [name for name in config.shipped_configs() if '/' not in name]
DETECTORS = [name for name in config.shipped_configs() if name.startswith('mask_rcnn/')]


def test_the_recipes_of_the_readme_are_there():
    wanted = {f'odis_vit{size}_{data}' for size in 'sbl' for data in ('coco', 'in1k')}
    assert wanted | {'ibot_vits_coco', 'odis_vits_coco_1gpu24g', 'odis_demo', 'ibot_demo'} <= set(PRETRAINING)
    assert DETECTORS


@pytest.mark.parametrize(
    'name, root',
    [(name, '/somewhere/else/') for name in PRETRAINING + DETECTORS if not name.endswith('_small')]
    + [(name, '/somewhere/else') for name in ('odis_vits_coco', 'odis_demo', DETECTORS[0])],
)
def test_data_roots_come_from_the_environment(name, root, monkeypatch):
    for variable in ('COCO_ROOT', 'IMAGENET_ROOT', 'ADE20K_ROOT', 'ODIS_DEMO_ROOT'):
        monkeypatch.setenv(variable, root)
    cfg = apis.load_config(name)
    dataset = cfg.train_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    assert os.path.normpath(dataset.data_root) == '/somewhere/else'
    for evaluator in ('val_evaluator', 'test_evaluator'):
        if cfg.get(evaluator):
            assert os.path.normpath(cfg[evaluator].ann_file).startswith('/somewhere/else/annotations/')


@functools.cache
def with_empty_roots(name):
    with pytest.MonkeyPatch.context() as patch:
        for variable in ('COCO_ROOT', 'IMAGENET_ROOT', 'ADE20K_ROOT'):
            patch.setenv(variable, '')
        return apis.load_config(name)


@pytest.mark.parametrize('name', PRETRAINING)
def test_an_empty_root_means_the_default(name):
    assert with_empty_roots(name).train_dataloader.dataset.data_root in (
        'data/coco/',
        'data/imagenet/',
        'data/ade20k/',
        'data/odis_demo',
        'data/own/',  # the small recipes: the folder is named by an option, or by odis-mm pretrain
    )


@pytest.mark.parametrize('name', PRETRAINING)
def test_every_type_is_registered_and_takes_its_arguments(name):
    cfg = with_empty_roots(name)
    checked = 0
    for path, node in walk(cfg._cfg_dict):
        if (
            not isinstance(node, dict)
            or not isinstance(node.get('type'), str)
            or path.endswith(('collate_fn', 'worker_init_fn', 'visualizer'))
        ):
            continue
        cls = config.find_class(node.type)
        assert cls is not None, f'{path}: {node.type}'
        if path == 'optim_wrapper' or 'param_scheduler' in path:
            continue  # these dicts hold arguments of the Runner's builders as well
        arguments, closed = config.arguments_of(cls)
        assert not closed or set(node) - {'type'} <= arguments, f'{path}: {set(node) - {"type"} - arguments}'
        checked += 1
    assert checked > 15


@pytest.mark.parametrize(
    'size, arch, lr, drop_path, clip, learned, scale',
    [
        ('s', 'deit-small', 5e-4, 0.1, 3.0, True, 0.25),
        ('b', 'base', 7.5e-4, 0.1, 0.3, False, 0.32),
        ('l', 'large', 7.5e-4, 0.4, 0.3, False, 0.32),
    ],
)
@pytest.mark.parametrize('data, epochs', [('coco', dict(s=100, b=100, l=100)), ('in1k', dict(s=800, b=400, l=250))])
def test_published_numbers(size, arch, lr, drop_path, clip, learned, scale, data, epochs):
    cfg = apis.load_config(f'odis_vit{size}_{data}')
    assert cfg.model.backbone.arch == arch and cfg.model.backbone.drop_path_rate == drop_path
    assert cfg.model.neck.norm_trainable is learned
    assert cfg.model.neck.num_prototypes == cfg.model.head.num_prototypes == 8192
    assert cfg.optim_wrapper.optimizer.lr == lr and cfg.optim_wrapper.clip_grad == dict(max_norm=clip, per_tensor=True)
    assert cfg.auto_scale_lr == dict(enable=True, base_batch_size=256)
    big, small = cfg.train_dataloader.dataset.pipeline[1].views
    assert (big.scale, small.scale) == ((scale, 1.0), (0.05, scale))
    assert (big.num, big.size, small.num, small.size) == (2, 224, 10, 96)
    assert cfg.train_cfg.max_epochs == epochs[size]


def test_ibot_is_odis_without_objects():
    odis, ibot = (apis.load_config(f'{method}_vits_coco') for method in ('odis', 'ibot'))
    assert ibot.model.masked_attention is False and ibot.train_dataloader.dataset.pipeline[1].object_aware is False
    ibot.model.masked_attention = ibot.train_dataloader.dataset.pipeline[1].object_aware = True
    assert ibot.to_dict() == odis.to_dict()


@pytest.mark.parametrize(
    'key, told',
    [
        ('train_dataloder.batch_size', "'train_dataloader'"),
        ('train_dataloader.batchsize', "'batch_size'"),
        ('model.backbone.archh', "'arch'"),
        ('model.backbone.with_cpp', "'with_cp'"),
        ('train_dataloader.dataset.pipeline.9.tries', 'index below 6'),
        ('train_dataloader.dataset.pipeline.views', 'index below 6'),
        ('model.backbone.arch.depth', "'deit-small'"),
    ],
)
def test_a_misspelt_option_is_named_with_its_remedy(key, told):
    with pytest.raises(ConfigError) as error:
        apis.load_config('odis_vits_coco', {key: 1})
    assert key in str(error.value) and told in str(error.value) and '\n' not in str(error.value)


def test_options_that_something_reads_are_taken():
    cfg = apis.load_config(
        'odis_vits_coco',
        {
            'train_dataloader.batch_size': 8,
            'train_dataloader.dataset.pipeline.1.tries': 3,
            'model.backbone.num_object_tokens': 2,
            'find_unused_parameters': True,
            '+model.backbone.notes.by': 'me',
            'model.backbone.norm_cfg': None,
        },
    )
    assert cfg.train_dataloader.batch_size == 8 and cfg.train_dataloader.dataset.pipeline[1].tries == 3
    assert cfg.model.backbone.num_object_tokens == 2 and cfg.model.backbone.notes.by == 'me'
    assert cfg.find_unused_parameters


def test_a_variable_of_the_file_cannot_be_set_in_vain():
    cfg = Config(dict(data_root='a/', train_dataloader=dict(dataset=dict(data_root='a/'))))
    with pytest.raises(ConfigError, match='such as train_dataloader.dataset.data_root'):
        apply_options(cfg, dict(data_root='b/'))


def test_a_recipe_is_read_once_and_again_when_it_changed(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(
        Config, 'fromfile', lambda path, fromfile=Config.fromfile: (read.append(path), fromfile(path))[1]
    )
    monkeypatch.setattr(config.reading, 'config_root', lambda: tmp_path)
    (tmp_path / 'base.py').write_text("data_root = '{{$COCO_ROOT:data/}}'\n")
    recipe = tmp_path / 'recipe.py'
    recipe.write_text("_base_ = 'base.py'\n")
    first = apis.load_config(recipe)
    first.data_root = 'of the one who asked'
    assert apis.load_config(recipe).data_root == 'data/' and len(read) == 1
    monkeypatch.setenv('COCO_ROOT', 'elsewhere/')
    assert apis.load_config(recipe).data_root == 'elsewhere/' and len(read) == 2
    (tmp_path / 'base.py').write_text("data_root = 'edited/'\n")
    os.utime(tmp_path / 'base.py', (1, 1))
    assert apis.load_config(recipe).data_root == 'edited/' and len(read) == 3


def test_one_config_is_parsed_at_a_time(tmp_path, monkeypatch):
    fromfile, inside, most = Config.fromfile, [], []

    def slow(path):
        inside.append(path)
        time.sleep(0.05)
        most.append(len(inside))
        inside.remove(path)
        return fromfile(path)

    monkeypatch.setattr(Config, 'fromfile', slow)
    paths = [tmp_path / f'{i}.py' for i in range(4)]
    for path in paths:
        path.write_text('data_root = "a"\n')
    with ThreadPoolExecutor(4) as pool:
        assert [cfg.data_root for cfg in pool.map(apis.load_config, paths)] == ['a'] * 4
    assert most == [1] * 4


def test_misspelt_top_level_key_of_a_file():
    with pytest.raises(ConfigError, match="'train_dataloder'.*'train_dataloader'"):
        check_top_level(Config(dict(train_dataloder=dict())))
    # variables of the file are not checked
    check_top_level(Config(dict(train_pipeline=[], data_root='', max_epochs=3)))


def test_unknown_config_is_named_with_its_neighbour(tmp_path):
    with pytest.raises(ConfigError, match="'odis_vits_coc'.*did you mean 'odis_vits_coco'"):
        apis.load_config('odis_vits_coc')
    broken = tmp_path / 'broken.py'
    broken.write_text('model = dict(\n')
    with pytest.raises(ConfigError, match='broken.py cannot be read'):
        apis.load_config(broken)


def test_a_schedule_that_outlives_the_run():
    with pytest.raises(ConfigError, match='begins at epoch 10, but training ends at epoch 3'):
        check_schedule(apis.load_config('odis_vits_coco', {'train_cfg.max_epochs': 3}))
    check_schedule(apis.load_config('odis_vits_coco', {'train_cfg.max_epochs': 11}))
    with pytest.raises(ConfigError, match='for a constant one set param_scheduler=None'):
        check_schedule(apis.load_config('odis_vits_coco', {'default_hooks.param_scheduler': None}))
    with pytest.raises(ConfigError, match='param_scheduler.0.start_factor must be above 0, such as 1e-6, not 0'):
        check_schedule(apis.load_config('odis_vits_coco', {'param_scheduler.0.start_factor': 0}))


def test_build_errors_become_one_sentence():
    cfg = apis.load_config('odis_vits_coco')
    cfg.model.backbone.archh = 1
    said = explain_build_error(TypeError("BaseModule.__init__() got an unexpected keyword argument 'archh'"), cfg)
    assert said == "model.backbone: ObjectViT takes no argument 'archh'; did you mean 'arch'?"
    del cfg.model.neck['in_channels']
    error = pytest.raises(TypeError, config.find_class('ProjectionNeck'), hidden_channels=3).value
    assert explain_build_error(error, cfg) == "model.neck: ProjectionNeck needs the argument 'in_channels'"
    cfg.model.head.type = 'DistilationHead'
    said = explain_build_error(
        KeyError('DistilationHead is not in the mmpretrain::model registry. Please check ...'), cfg
    )
    assert said.startswith("model.head.type: no class 'DistilationHead'") and "'DistillationHead'" in said
    assert explain_build_error(KeyError('something else'), cfg) is None


def test_arguments_follow_kwargs_up_the_bases():
    arguments, closed = config.arguments_of(config.find_class('ObjectViT'))
    assert closed and {'with_cp', 'arch', 'drop_path_rate', 'init_cfg'} <= arguments
    assert 'launcher' in config.RUNNER_KEYS and 'cfg' not in config.RUNNER_KEYS
    assert inspect.isclass(config.find_class('mmpretrain.ObjectViT'))


@pytest.mark.parametrize(
    'name, arch, width, lr, clip, batch',
    [
        ('gtsa_vits_coco', 'deit-small', 384, 5e-4, 3.0, 64),
        ('gtsa_vits_ade20k', 'deit-small', 384, 5e-4, 3.0, 64),
        ('gtsa_vitb_coco', 'base', 768, 7.5e-4, 0.3, 32),
    ],
)
def test_published_numbers_of_gtsa(name, arch, width, lr, clip, batch):
    cfg = apis.load_config(name)
    model, head = cfg.model, cfg.model.head
    assert model.backbone.arch == arch and (model.backbone.img_size, model.backbone.patch_size) == (224, 16)
    assert (model.neck.in_channels, model.neck.hidden_channels, model.neck.out_channels) == (width, width, 768)
    assert (
        model.neck.residual
        and not head.predictor.residual
        and (model.neck.num_blocks, head.predictor.num_blocks) == (2, 1)
    )
    assert (head.predictor.in_channels, head.predictor.hidden_channels, head.predictor.out_channels) == (768, 768, 768)
    assert (head.crop_cells, head.num_matches, head.rotation_channels) == ((10, 4), (98, 18), (768, 768, 128))
    assert (head.lambda_crop, head.lambda_correspondence, head.lambda_rotation, head.correspondence_epoch) == (
        1.0,
        0.5,
        0.5,
        11,
    )
    assert cfg.train_dataloader.dataset.pipeline[2] == dict(type='RenderViews', interpolation='bilinear')
    assert cfg.optim_wrapper.optimizer.lr == lr and cfg.optim_wrapper.clip_grad == dict(max_norm=clip, per_tensor=True)
    assert cfg.auto_scale_lr == dict(enable=True, base_batch_size=256) and cfg.train_cfg.max_epochs == 100
    views, colours = cfg.train_dataloader.dataset.pipeline[1], cfg.train_dataloader.dataset.pipeline[3]
    big, small = views.views
    assert (big.num, big.size, big.scale, small.num, small.size, small.scale) == (2, 224, (0.3, 1.0), 8, 96, (0.1, 0.3))
    assert views.min_overlap == (0.02, 0.01) and 'flip' not in big and 'flip' not in small
    assert (colours.brightness, colours.contrast, colours.saturation, colours.hue, colours.jitter_prob) == (
        0.8,
        0.8,
        0.8,
        0.2,
        0.8,
    )
    assert colours.gray_prob == 0.2 and colours.blur_prob == (0.2,) * 3 and not any(colours.solarize_prob)
    assert cfg.train_dataloader.batch_size == batch and not cfg.train_dataloader.dataset.ann_file


def test_a_value_too_nested_for_an_option_is_told():
    with pytest.raises(ConfigError, match='anything nested deeper'):
        config.parse_options(['pipeline=[[dict(type="X",scales=[(480,320)])]]'])
