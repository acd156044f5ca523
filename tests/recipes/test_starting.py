"""--init: any method starts from a ViT of any family, student and teacher equal to the file; wrong files end in one
sentence."""

import copy
import json
import logging

import pytest
import timm
import torch
from mmengine.registry import MODELS, PARAM_SCHEDULERS, init_default_scope

from helpers import SMALL_DETECTOR, stock_vit
from odis_mm import apis
from odis_mm.cli.train import train_main
from odis_mm.config import load_config
from odis_mm.detection import DetectorInit  # noqa: F401
from odis_mm.engine.settings import fast_forward
from odis_mm.recipes.starting import follow_named, keep_weights, named_start, start_from
from odis_mm.transfer import CheckpointError, build_backbone, read_checkpoint, read_meta, read_vit
from odis_mm.utils.distributed import unwrap
from odis_mm.utils.errors import ConfigError

RUN = {
    'train_dataloader.batch_size': 4,
    'train_dataloader.num_workers': 0,
    'train_cfg.max_epochs': 1,
    'param_scheduler.0.end': 0.5,
    'param_scheduler.1.begin': 0.5,
    'auto_scale_lr.enable': False,
    'optim_wrapper.optimizer.lr': 1e-3,
    'default_hooks.views': None,
}
# the demo recipes' ViT: 128 wide, 4 deep, patches of 8
SHAPE = dict(embed_dim=128, depth=4, num_heads=4, patch_size=8, num_classes=0, mlp_ratio=4)
FAMILIES = {
    'dinov2': 'vit_small_patch14_dinov2',
    'dinov2 registers': 'vit_small_patch14_reg4_dinov2',
    'dinov3': 'vit_small_patch16_dinov3_qkvb',
    'dinov3 plus': 'vit_small_plus_patch16_dinov3',
    'deit': 'deit_small_patch16_224',
    'mae': 'vit_small_patch16_224',
}
HUGGING_FACE = {  # names of configs and models in transformers, and the options of one
    'ViT': ('ViTConfig', 'ViTModel', dict(intermediate_size=512)),
    'Dinov2': ('Dinov2Config', 'Dinov2Model', {}),
    'Dinov2WithRegisters': ('Dinov2WithRegistersConfig', 'Dinov2WithRegistersModel', {}),
    'DINOv3': ('DINOv3ViTConfig', 'DINOv3ViTModel', dict(intermediate_size=512, num_register_tokens=4)),
}
MEAN, STD = [100.0, 110.0, 120.0], [50.0] * 3


def perturbed(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def file_of(family, folder, **options):
    torch.manual_seed(0)
    if family in HUGGING_FACE:
        return folder_of_hugging_face(family, folder)
    state = perturbed(timm.create_model(FAMILIES[family], img_size=32, **{**SHAPE, **options})).state_dict()
    if family == 'mae':  # the release's file of the whole model
        state.update({'mask_token': torch.zeros(1, 1, 64), 'decoder_pred.weight': torch.zeros(192, 64)})
    path = folder / f'{family.replace(" ", "_")}.pth'
    torch.save(dict(state_dict=state, meta=dict(num_heads=4, mean=MEAN, std=STD)), path)
    return path


def folder_of_hugging_face(family, folder):
    transformers = pytest.importorskip('transformers', reason='transformers is not installed: odis_mm[test-neighbours]')
    config, model, options = HUGGING_FACE[family]
    config = getattr(transformers, config)(
        hidden_size=128, num_hidden_layers=4, num_attention_heads=4, image_size=32, patch_size=8, **options
    )
    perturbed(getattr(transformers, model)(config)).save_pretrained(folder / 'theirs')
    told = dict(image_mean=[value / 255 for value in MEAN], image_std=[value / 255 for value in STD])
    (folder / 'theirs' / 'preprocessor_config.json').write_text(json.dumps(told))
    return folder / 'theirs' / 'model.safetensors'


def pretraining(method, demo):
    return load_config(f'{method}_demo', {**RUN, 'train_dataloader.dataset.data_root': str(demo)})


def same_as_file(backbone, path):
    wanted = build_backbone(path).state_dict()
    found = backbone.state_dict()
    return wanted.keys() == found.keys() and all(
        torch.equal(found[key], value) for key, value in wanted.items() if found[key].shape == value.shape
    )


@pytest.mark.slow
@pytest.mark.parametrize('family', [*FAMILIES, *HUGGING_FACE])
@pytest.mark.parametrize('method', ['odis', 'gtsa', 'alfm'])
def test_every_method_starts_from_every_family_and_feeds_a_detector(method, family, demo, tmp_path, monkeypatch):
    """Three iterations or more; the teacher equals the file at iteration 0; the export trains in Mask R-CNN for two
    iterations."""
    path = file_of(family, tmp_path)
    seen = []

    def watch(self, runner, *args, **kwargs):
        model = unwrap(runner.model)
        seen.append((same_as_file(model.backbone, path), same_as_file(model.teacher['backbone'], path), runner.iter))

    from odis_mm.engine.hooks import SelfSupScheduleHook

    own = SelfSupScheduleHook.before_train
    monkeypatch.setattr(SelfSupScheduleHook, 'before_train', lambda self, r: (watch(self, r), own(self, r))[1])
    runner = apis.train(pretraining(method, demo), work_dir=str(tmp_path / 'run'), init=str(path))
    assert seen == [(True, True, 0)] and runner.iter >= 3
    export = tmp_path / 'run' / 'epoch_1_backbone.pth'
    meta = read_meta(export)
    assert meta['num_heads'] == 4 and meta['mean'] == pytest.approx(MEAN)
    assert not same_as_file(runner.model.backbone, path)  # it learned
    if method != 'odis' and family != 'dinov3':
        return  # exports of the methods differ in nothing that a detector reads
    with pytest.raises(ConfigError, match='--init .*_backbone.pth: the run in .* started from .* leave --init out'):
        apis.train(pretraining(method, demo), work_dir=str(tmp_path / 'run'), resume='latest', init=str(export))

    detector = load_config(
        'mask-rcnn_demo',
        {
            'train_dataloader.dataset.data_root': str(demo),
            'val_dataloader.dataset.data_root': str(demo),
            'val_evaluator.ann_file': f'{demo}/annotations/instances_val2017.json',
            'train_dataloader.batch_size': 2,
            'train_cfg.max_iters': 2,
            'train_cfg.val_interval': 2,
            'param_scheduler.0.end': 1,
            'param_scheduler.1.begin': 1,
            'param_scheduler.1.end': 2,
            'param_scheduler.1.T_max': 1,
            **SMALL_DETECTOR,
        },
    )
    trained = apis.train(detector, work_dir=str(tmp_path / 'detector'), init=str(export))
    assert trained.iter == 2 and any('bbox_mAP' in name for name in trained.message_hub.log_scalars)


@pytest.mark.parametrize('family', ['deit', 'dinov3 plus', 'dinov2 registers'])
def test_the_config_takes_what_the_file_needs(family, demo, tmp_path):
    init_default_scope('mmpretrain')
    path = file_of(family, tmp_path)
    cfg = pretraining('odis', demo)
    lines = start_from(cfg, path)
    assert any('mean 100, 110, 120' in line for line in lines)
    assert cfg.model.data_preprocessor.std == [50.0] * 3
    model = MODELS.build(cfg.model)
    model.init_weights()
    for backbone in (model.backbone, model.teacher['backbone']):
        assert same_as_file(backbone, path)
    before = copy.deepcopy(cfg.model.backbone)
    start_from(cfg, path)  # as a resumed run does
    assert before == cfg.model.backbone


@pytest.mark.parametrize('recipe', ['odis_demo', 'mask-rcnn_demo'])
def test_windows_of_the_file_are_taken_and_those_of_the_config_kept(recipe, tmp_path):
    path = file_of('deit', tmp_path)
    content = torch.load(path, weights_only=True)
    content['meta'].update(window_size=4, global_every=2)
    torch.save(content, path)
    for own, expected in ({}, (4, 2)), (dict(window_size=3), (3, None)):
        cfg = load_config(recipe)
        cfg.model.backbone.update(own)
        start_from(cfg, path)
        backbone = cfg.model.backbone
        assert (backbone.get('window_size'), backbone.get('global_every')) == expected
        if not own:
            assert backbone.type.endswith('ObjectViT')


def test_the_log_says_what_arrived_and_what_was_left_out(demo, tmp_path):
    init_default_scope('mmpretrain')
    path = file_of('dinov2', tmp_path)
    content = torch.load(path, weights_only=True)
    content['state_dict']['mask_token'] = torch.zeros(1, 128)
    content['state_dict']['head.weight'] = torch.zeros(3, 128)
    torch.save(content, path)
    cfg = pretraining('odis', demo)
    start_from(cfg, path)
    model = MODELS.build(cfg.model)
    from mmengine.logging import MMLogger

    logger = MMLogger.get_instance('starting', logger_name='starting')
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger.addHandler(handler)
    model.init_weights()
    said = next(line for line in lines if line.startswith('backbone <- '))
    assert 'mask_token: used in pretraining only' in said and 'head.weight: head of a classifier' in said
    assert '0 expected-missing, 0 unexpected' in said


def test_configs_may_name_the_file_as_for_a_detector(demo, tmp_path):
    path = str(file_of('deit', tmp_path))
    for options in ({'model.backbone.init_cfg.checkpoint': path}, {'model.init_cfg.checkpoint': path}):
        cfg = pretraining('gtsa', demo)
        for key, value in options.items():
            cfg.merge_from_dict({key: value})
        assert named_start(cfg) == path
    assert named_start(pretraining('gtsa', demo)) is None
    assert named_start(load_config('mask-rcnn_demo', {'model.backbone.init_cfg.checkpoint': path})) is None


@pytest.mark.parametrize('owner', ['model', 'model.backbone'])
@pytest.mark.parametrize('kept', ['allow_missing', 'allow_unexpected'])
def test_what_a_config_lets_be_missing_or_left_over_may_be(owner, kept, demo, tmp_path):
    path = file_of('deit', tmp_path)
    if kept == 'allow_unexpected':
        state = read_checkpoint(path)
        torch.save({**state, 'blocks.0.adapter.weight': torch.zeros(2)}, path)
    lets = dict(allow_missing=['register_*'], allow_unexpected=['blocks.*.adapter.*'])[kept]
    for allowed in (None, lets):
        options = {f'{owner}.init_cfg': dict(type='VerifiedPretrained', checkpoint=str(path))}
        if allowed:
            options[f'{owner}.init_cfg'][kept] = allowed
        cfg = pretraining('odis', demo)
        cfg.merge_from_dict(options)
        if kept == 'allow_missing':
            cfg.model.backbone.num_registers = 2
        try:
            start_from(cfg, named_start(cfg))
            init_default_scope('mmpretrain')
            MODELS.build(cfg.model).init_weights()
        except CheckpointError as error:
            assert allowed is None and ('register_tokens' if kept == 'allow_missing' else 'adapter') in str(error)
        else:
            assert allowed is not None


def test_other_keys_of_a_pretraining_s_starting_weights_are_refused(demo, tmp_path):
    cfg = pretraining('odis', demo)
    cfg.merge_from_dict({'model.backbone.init_cfg': dict(type='Pretrained', checkpoint='a.pth', prefix='student.')})
    with pytest.raises(ConfigError, match='model.backbone.init_cfg.prefix is read by nothing.*remove it'):
        named_start(cfg)


@pytest.mark.parametrize('how', ['--init', 'option'])
def test_detectors_read_and_normalise_as_the_file_tells(how, tmp_path):
    """As ``finetune --init``; what someone has set is left to a file that is named as an option."""
    path, window = tmp_path / 'scans.pth', [900.0, 1400.0]
    meta = dict(num_heads=4, mean=MEAN, std=STD, reading=dict(window=window))
    backbone = build_backbone(file_of('deit', tmp_path))
    torch.save(dict(state_dict=backbone.state_dict(), meta=meta), path)
    named = {'model.backbone.init_cfg.checkpoint': str(path)}
    cfg = load_config('mask-rcnn_demo', named if how == 'option' else {})
    cfg.model.data_preprocessor.update(mean=[103.53, 116.28, 123.675], std=[1.0] * 3, bgr_to_rgb=False)
    lines = start_from(cfg, path) if how == '--init' else follow_named(cfg)
    preprocessor = cfg.model.data_preprocessor
    assert preprocessor.mean == MEAN and preprocessor.std == STD and preprocessor.bgr_to_rgb
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert loader.dataset.pipeline[0] == dict(type='LoadDetectionImage', window=window)
    assert 'window=[900.0, 1400.0]' in ' '.join(lines)
    if how == 'option':
        assert 'mean 100, 110, 120 and std 50, 50, 50 from the file' in lines[0]
        assert follow_named(cfg) == []  # as a resumed run does
        preprocessor.mean, cfg.train_dataloader.dataset.pipeline[0].window = [1.0, 2.0, 3.0], [0, 9]
        assert 'has others, which are kept' in ' '.join(follow_named(cfg))
        assert preprocessor.mean == [1, 2, 3] and cfg.train_dataloader.dataset.pipeline[0].window == [0, 9]


def wrong_file(kind, folder):
    path = folder / f'{kind}.pth'
    state = read_vit(stock_vit(dict(embed_dims=128, num_layers=4, num_heads=4, feedforward_channels=512)).state_dict())
    if kind == 'width':
        torch.save(stock_vit().state_dict(), path)
    elif kind == 'patch':
        return file_of('deit', folder, patch_size=16)
    elif kind == 'convnext':
        torch.save(timm.create_model('convnext_atto', num_classes=0).state_dict(), path)
    elif kind == 'language':
        from safetensors.torch import save_file

        path = folder / 'model.safetensors'
        names = ('model.embed_tokens.weight', 'model.layers.0.self_attn.q_proj.weight', 'lm_head.weight')
        save_file({name: torch.zeros(4, 4) for name in names}, path)
    elif kind == 'truncated':
        torch.save(state.state, path)
        path.write_bytes(path.read_bytes()[:5000])
    elif kind == 'missing':
        return folder / 'none.pth'
    return path


@pytest.mark.parametrize(
    'kind, words',
    [
        ('width', '24 channels and 2 blocks, and the backbone of the config has 128 and 4'),
        ('patch', 'patches of 16 pixels and the config 8.*patch_size=16'),
        ('convnext', 'holds no plain ViT of a known layout'),
        ('language', 'holds no plain ViT of a known layout'),
        ('truncated', 'truncated or no checkpoint'),
        ('missing', 'does not exist'),
    ],
)
def test_wrong_files_end_in_one_sentence(kind, words, demo, tmp_path):
    path = wrong_file(kind, tmp_path)
    with pytest.raises(CheckpointError, match=words) as error:
        start_from(pretraining('odis', demo), path)
    assert '\n' not in str(error.value)


def test_of_a_detector_the_backbone_is_used_and_that_is_said(demo, tmp_path):
    vit = build_backbone(file_of('deit', tmp_path)).state_dict()
    head = {'rpn_head.rpn_conv.weight': torch.zeros(1)}

    def detector(backbone):
        torch.save(dict(state_dict={**{f'backbone.{key}': value for key, value in backbone.items()}, **head}), path)
        return path

    init_default_scope('mmpretrain')
    path, cfg = tmp_path / 'iter_3.pth', pretraining('odis', demo)
    told = "a detector's checkpoint, of which the backbone is used; neck and head start from random weights"
    assert start_from(cfg, detector(vit))[0] == f'--init: {path}, {told}'
    model = MODELS.build(cfg.model)
    model.init_weights()
    assert all(torch.equal(model.branch('teacher').state_dict()[key], vit[key]) for key in ('cls_token', 'ln1.weight'))
    resnet = {'conv1.weight': torch.zeros(64, 3, 7, 7), 'layer1.0.conv1.weight': torch.zeros(64, 64, 1, 1)}
    swin = {
        'patch_embed.projection.weight': torch.zeros(96, 3, 4, 4),
        'stages.0.blocks.0.norm1.weight': torch.zeros(96),
    }
    for backbone, words in (
        (resnet, 'it is a ResNet and the backbone of the recipe a ViT'),
        (swin, 'it holds no plain ViT'),
    ):
        with pytest.raises(
            CheckpointError, match=f"is a detector's checkpoint whose backbone .* cannot start from: {words}"
        ):
            start_from(pretraining('odis', demo), detector(backbone))


def refused(arguments, folder, capsys):
    """The sentence in which ``odis-mm train`` ends."""
    with pytest.raises(SystemExit) as ended:
        train_main([*arguments, '--work-dir', str(folder / 'run')])
    said = capsys.readouterr().err.splitlines()[-1]
    assert ended.value.code == 2 and said.startswith('error: ')
    return said


def test_the_command_ends_in_that_sentence(tmp_path, demo, monkeypatch, capsys):
    monkeypatch.setenv('ODIS_DEMO_ROOT', demo)
    assert 'does not exist' in refused(['odis_demo', '--init', str(tmp_path / 'none.pth')], tmp_path, capsys)
    file = str(wrong_file('patch', tmp_path))
    said = refused(['odis_demo', '--init', file], tmp_path, capsys)
    assert 'has patches of 16 pixels and the config 8' in said and 'model.backbone.patch_size=16' in said


def test_a_detector_says_which_options_a_file_needs(tmp_path, demo, monkeypatch, capsys):
    monkeypatch.setenv('ODIS_DEMO_ROOT', demo)
    file = file_of('dinov2 registers', tmp_path)
    said = refused(['mask-rcnn_demo', '--cfg-options', f'model.backbone.init_cfg.checkpoint={file}'], tmp_path, capsys)
    assert 'layer_scale_init_value=1e-05' in said and 'num_registers=4' in said and 'mmpretrain.ObjectViT' in said


def test_another_patch_with_consent_changes_the_views(demo, tmp_path):
    path = file_of('deit', tmp_path, patch_size=7)
    cfg = pretraining('odis', demo)
    cfg.model.backbone.patch_size = 7
    lines = start_from(cfg, path)
    views = next(step for step in cfg.train_dataloader.dataset.pipeline if step['type'] == 'SampleViews')
    assert views['patch_size'] == 7 and views['views'][0]['size'] == 35
    assert any('views of 35 pixels, not 32' in line for line in lines)


def test_a_recipe_of_another_size_adapts_if_it_may(demo, tmp_path):
    init_default_scope('mmpretrain')
    path = file_of('deit', tmp_path, embed_dim=64, depth=2, num_heads=4)
    cfg = pretraining('gtsa', demo)
    start_from(cfg, path, adapt=True)
    assert (cfg.model.neck.in_channels, cfg.model.head.in_channels, cfg.model.backbone.arch.num_layers) == (64, 64, 2)
    MODELS.build(cfg.model)


@pytest.mark.parametrize('width, heads', [(192, 3), (384, 6), (768, 12), (96, None)])
def test_heads_are_those_of_the_file_not_of_a_recipe_of_another_width(demo, tmp_path, width, heads):
    """Its tensors do not tell them, and with others its attention is another."""
    path = file_of('deit', tmp_path, embed_dim=width, depth=1, num_heads=heads or 3)
    torch.save(torch.load(path)['state_dict'], path)
    cfg = pretraining('gtsa', demo)
    assert cfg.model.backbone.arch.num_heads not in (3, 6, 12)
    if heads is None:
        with pytest.raises(
            CheckpointError, match='96 wide, which is none of the usual ViTs .* --heads N writes a file'
        ):
            start_from(cfg, path, adapt=True)
        return
    start_from(cfg, path, adapt=True)
    assert cfg.model.backbone.arch.num_heads == heads


def test_checkpoints_of_a_run_tell_their_heads(demo, tmp_path):
    """A training checkpoint of an unusual width is evaluated without being told its heads."""
    apis.train(pretraining('odis', demo), work_dir=str(tmp_path))
    assert read_meta(tmp_path / 'epoch_1.pth')['num_heads'] == 4
    assert build_backbone(tmp_path / 'epoch_1.pth').layers[0].attn.num_heads == 4
    assert 'backbone.cls_token' in read_checkpoint(tmp_path / 'epoch_1_backbone.pth')


def test_the_rates_of_blocks_keep_their_ratio_to_the_end():
    """Of a deep ViT, whose lowest blocks would rise to the least rate of all."""
    cfg = load_config('odis_small')
    lr = cfg.optim_wrapper.optimizer.lr
    keep_weights(cfg, 600)
    top, rate = cfg.optim_wrapper.optimizer.lr, cfg.optim_wrapper.paramwise_cfg.layer_decay_rate
    assert top == pytest.approx(lr / 10)
    groups = [dict(params=[torch.nn.Parameter(torch.zeros(1))], lr=top * rate**down) for down in (0, 12, 25)]
    optimizer = torch.optim.AdamW(groups)
    schedulers = [
        PARAM_SCHEDULERS.build(dict(part), default_args=dict(optimizer=optimizer)) for part in cfg.param_scheduler
    ]
    fast_forward(schedulers, 600, 60)
    last = [group['lr'] for group in optimizer.param_groups]
    assert last == [pytest.approx(last[0] * rate**down) for down in (0, 12, 25)]
    assert last[0] == pytest.approx(1e-6, rel=0.01)
