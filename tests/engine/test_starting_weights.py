"""What preserves starting weights: rates by block, heads first, the proxy beside its value at the start,
the best export."""

import copy
import json

import pytest
import torch
from mmengine.hooks import Hook
from mmpretrain.registry import MODELS

from helpers import BACKBONE, make_odis, odis_runner
from odis_mm.engine.hooks import RegionProxyHook, SelfSupScheduleHook
from odis_mm.engine.optim import SelfSupOptimWrapperConstructor
from odis_mm.transfer import build_backbone, read_checkpoint, read_meta, save_backbone
from odis_mm.utils.errors import ConfigError

ADAMW = dict(type='AdamW', lr=1.0, weight_decay=0.1)


def test_blocks_learn_the_more_slowly_the_lower_they_stand():
    model = make_odis(backbone=dict(num_registers=2))
    wrapper = SelfSupOptimWrapperConstructor(dict(optimizer=ADAMW), paramwise_cfg=dict(layer_decay_rate=0.5))(model)
    names = {id(p): name for name, p in model.named_parameters()}
    rates, seen = {}, 0
    for group in wrapper.optimizer.param_groups:
        for parameter in group['params']:
            name = names[id(parameter)]
            rates[name], seen = group['lr'], seen + 1
            assert group['backbone'] is name.startswith('backbone.')
            assert (group['weight_decay'] > 0) is (
                parameter.ndim > 1 and 'token' not in name and 'pos' not in name and 'weight_g' not in name
            )
    assert seen == sum(p.requires_grad for p in model.parameters())
    # three blocks: embeddings 0.5^4, then up to the final norm, neck and mask token at 1
    assert rates['backbone.patch_embed.projection.weight'] == rates['backbone.register_tokens'] == 0.5**4
    assert [rates[f'backbone.layers.{i}.attn.qkv.weight'] for i in range(3)] == [0.5**3, 0.5**2, 0.5]
    assert rates['backbone.ln1.weight'] == rates['neck.prototypes.weight_v'] == rates['mask_token'] == 1
    with pytest.raises(ConfigError, match=r'\(0, 1\]'):
        SelfSupOptimWrapperConstructor(dict(optimizer=ADAMW), paramwise_cfg=dict(layer_decay_rate=1.5))


class Watch(Hook):
    priority = 'LOWEST'

    def __init__(self):
        self.backbones, self.rates = [], []

    def after_train_iter(self, runner, *args, **kwargs):
        model = runner.model
        self.backbones.append(copy.deepcopy(model.backbone.state_dict()))
        self.rates.append([group['lr'] for group in runner.optim_wrapper.optimizer.param_groups])


def test_heads_are_warmed_on_a_backbone_that_stays(tmp_path):
    watch = Watch()
    runner = odis_runner(tmp_path, hooks=[watch])
    hook = next(h for h in runner.hooks if isinstance(h, SelfSupScheduleHook))
    hook.warm_heads = 0.25  # 2 of 8 iterations
    runner.optim_wrapper = SelfSupOptimWrapperConstructor(
        dict(type='SafeOptimWrapper', optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.04)),
        paramwise_cfg=dict(layer_decay_rate=1.0),
    )(runner.model)
    start = None

    class Before(Hook):
        def before_train(self, runner):
            nonlocal start
            start = copy.deepcopy(runner.model.state_dict())

    runner.register_hook(Before())
    runner.train()
    own = {key.removeprefix('backbone.'): value for key, value in start.items() if key.startswith('backbone.')}
    for i in range(2):
        assert all(torch.equal(watch.backbones[i][key], value) for key, value in own.items())
    assert any(not torch.equal(watch.backbones[2][key], value) for key, value in own.items())
    teacher = {key: value for key, value in start.items() if key.startswith('neck.')}
    now = runner.model.state_dict()
    assert any(not torch.equal(now[key], value) for key, value in teacher.items())
    assert all(rate == 1e-3 for rates in watch.rates for rate in rates)  # what schedulers set is left as it was
    logged = runner.message_hub.get_scalar('train/backbone_lr').data[0]
    assert logged.tolist() == pytest.approx([0, 0, 5e-4] + 5 * [1e-3])
    assert [hook.backbone_share(i, 8) for i in range(6)] == [0, 0, 0.5, 1, 1, 1]
    hook.warm_heads = 0.0
    assert hook.backbone_share(0, 8) == 1


def test_warm_heads_need_groups_of_their_own(tmp_path):
    runner = odis_runner(tmp_path)
    next(h for h in runner.hooks if isinstance(h, SelfSupScheduleHook)).warm_heads = 0.1
    with pytest.raises(ConfigError, match='layer_decay_rate'):
        runner.train()
    with pytest.raises(ConfigError, match=r'\[0, 0.5\)'):
        SelfSupScheduleHook(warm_heads=0.7)


class Falling(RegionProxyHook):
    """A proxy that falls and rises as told."""

    values = (60.0, 50.0, 70.0, 65.0)

    def prepare(self, frozen):
        self.left = list(self.values)

    def trivial(self):
        return {}

    def measure(self, frozen):
        return dict(box_pool=self.left.pop(0), object_auc=80.0)


@pytest.mark.parametrize('of', ['student', 'teacher'])
def test_the_best_export_holds_what_was_measured(of, tmp_path):
    model = make_odis(momentum=dict(start=0.5, end=1.0))
    seen = []

    class Watching(Falling):
        def measure(self, frozen):
            seen.append(copy.deepcopy(frozen.backbone.state_dict()))
            return dict(box_pool=float(len(seen)))

    runner = odis_runner(tmp_path, model=model, cfg=dict(model=dict(backbone=BACKBONE)))
    runner.register_hook(Watching('', interval=3, by_epoch=False, of=of, random_baseline=False, keep_best=True))
    runner.train()
    best = read_checkpoint(tmp_path / 'best_regions_backbone.pth')
    assert best.keys() == {f'backbone.{key}' for key in seen[-1]}
    assert all(torch.equal(best[f'backbone.{key}'], value) for key, value in seen[-1].items())


def test_the_proxy_stands_beside_its_value_at_the_start_and_the_best_export_is_kept(tmp_path):
    model = make_odis(momentum=dict(start=0.5, end=1.0))
    model.backbone.init_cfg = dict(type='Pretrained', checkpoint='some.pth')  # as VerifiedPretrained leaves it
    model.init_weights = lambda: None
    hook = Falling('', interval=3, by_epoch=False, random_baseline=False, keep_best=True)
    runner = odis_runner(tmp_path, model=model, cfg=dict(model=dict(backbone=BACKBONE)))
    runner.register_hook(hook)
    said = []
    runner.logger.warning = lambda text, *args: said.append(text)
    runner.train()
    record = json.loads((tmp_path / 'regions.json').read_text())
    assert record['start'] == dict(box_pool=60.0, object_auc=80.0)
    assert [point['box_pool'] for point in record['history']] == [60.0, 50.0, 70.0, 65.0]
    told = [text for text in said if 'getting worse than what you started with' in text]
    assert len(told) == 1 and 'box_pool 50.0 from 60.0' in told[0] and 'learning rate' in told[0]
    best = tmp_path / 'best_regions_backbone.pth'
    assert read_meta(best)['box_pool'] == 70.0 and read_meta(best)['iteration'] == 6
    assert build_backbone(best).layers[0].attn.num_heads == 4


@pytest.mark.parametrize('known', [True, False])
def test_a_run_that_goes_on_in_another_folder_keeps_its_start(known, tmp_path, monkeypatch):
    said = []
    for folder in ('first', 'second'):
        model = make_odis(momentum=dict(start=0.5, end=1.0))
        model.backbone.init_cfg = dict(type='Pretrained', checkpoint='some.pth')
        model.init_weights = lambda: None
        resumed = folder == 'second'
        runner = odis_runner(
            tmp_path / folder, model=model, epochs=1 + resumed, cfg=dict(model=dict(backbone=BACKBONE))
        )
        runner.register_hook(Falling('', interval=1, random_baseline=False))
        runner.logger.warning = lambda text, *args: said.append(text)
        if resumed:
            runner._resume, runner._load_from = True, str(tmp_path / 'first' / 'epoch_1.pth')
            if not known:
                (tmp_path / 'first' / 'regions.json').unlink()
            monkeypatch.setattr(Falling, 'values', (50.0, 40.0))
        said.clear()
        runner.train()
    record = json.loads((tmp_path / 'second' / 'regions.json').read_text())
    assert record['start'] == (dict(box_pool=60.0, object_auc=80.0) if known else None)
    assert [point['iteration'] for point in record['history']] == [4, 8]
    assert any('box_pool 40.0 from 60.0' in text for text in said) == known
    assert any('what the run began from is not known' in text for text in said) != known


def test_a_run_from_nothing_has_no_start_to_compare_with(tmp_path):
    hook = Falling('', interval=3, by_epoch=False, random_baseline=False)
    runner = odis_runner(tmp_path, cfg=dict(model=dict(backbone=BACKBONE)))
    runner.register_hook(hook)
    runner.train()
    assert json.loads((tmp_path / 'regions.json').read_text())['start'] is None
    assert not (tmp_path / 'best_regions_backbone.pth').exists()


def test_random_weights_leave_the_generators_of_gpus_alone(monkeypatch, tmp_path):
    """Which torch.manual_seed would seed, too; and to keep those of several GPUs, torch warns."""
    model, touched, forked = make_odis(momentum=dict(start=0.5, end=1.0)), [], torch.random.fork_rng
    model.backbone.init_cfg = dict(type='Pretrained', checkpoint='some.pth')  # so that random weights are measured, too
    model.init_weights = lambda: None
    resnet = MODELS.build(dict(type='mmpretrain.ResNet', depth=18)).state_dict()
    runner = odis_runner(tmp_path, model=model, cfg=dict(model=dict(backbone=BACKBONE)))
    runner.register_hook(Falling('', interval=1))
    monkeypatch.setattr(torch.cuda, 'manual_seed_all', touched.append)
    monkeypatch.setattr(torch.random, 'fork_rng', lambda devices=None: touched.append(devices) or forked(devices=[]))
    runner.train()
    before = torch.get_rng_state()
    for name, state, meta in (('vit', model.backbone.state_dict(), dict(num_heads=4)), ('resnet', resnet, {})):
        save_backbone(tmp_path / f'{name}.pth', state, meta)
        build_backbone(tmp_path / f'{name}.pth')
    assert touched == [[]] * 3 and torch.equal(torch.get_rng_state(), before)
