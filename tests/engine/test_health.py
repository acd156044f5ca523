"""The health monitor: figures against their definitions, each fault provoked and named, healthy runs left alone."""

import copy
import logging
import math
import re
from types import SimpleNamespace

import cv2
import pytest
import torch
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from helpers import K, losses_of, make_batch, make_odis
from odis_mm import apis
from odis_mm.datasets import demo
from odis_mm.engine.hooks.health import REMEDIES, Figures, HealthHook, Limits
from odis_mm.utils.files import read_records


class Views(torch.utils.data.Dataset):
    def __init__(self, wait=lambda: None):
        self.wait = wait

    def __len__(self):
        return 10

    def __getitem__(self, index):
        self.wait()
        return make_batch(batch=8, seed=index)


def run(tmp_path, model=None, lr=1e-3, epochs=2, wait=lambda: None, **hook):
    init_default_scope('mmpretrain')
    loader = torch.utils.data.DataLoader(Views(wait), batch_size=1, collate_fn=lambda items: items[0])
    runner = Runner(
        model or make_odis(),
        str(tmp_path),
        train_dataloader=loader,
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(
            type='SafeOptimWrapper',
            optimizer=dict(type='AdamW', lr=lr, weight_decay=0.04),
            clip_grad=dict(max_norm=3.0),
            constructor='SelfSupOptimWrapperConstructor',
        ),
        default_hooks=dict(checkpoint=None, logger=dict(type='LoggerHook', interval=5)),
        custom_hooks=[dict(type='SelfSupScheduleHook'), dict(type='HealthHook', **{**dict(interval=2), **hook})],
        experiment_name=f'health_{tmp_path.name}',
        default_scope='mmpretrain',
    )
    told = []
    runner.logger.addHandler(type('Ears', (logging.Handler,), dict(emit=lambda self, record: told.append(record)))())
    runner.train()
    return [r.getMessage() for r in told if r.levelno == logging.WARNING and r.getMessage().startswith('health: ')], [
        r.getMessage() for r in told if r.levelno == logging.INFO
    ]


def names(warnings):
    return {name for name in REMEDIES for text in warnings if text.startswith(f'health: {name}: ')}


def test_figures_are_what_they_say():
    model = make_odis()
    with torch.no_grad():
        model.backbone.pos_embed.add_(0.1)  # apart from the teacher
    data = make_batch()
    clean = losses_of(model, data)
    model.head.token_center.pending.zero_(), model.head.patch_center.pending.zero_()
    model.watch_health()
    watched = losses_of(model, data)
    assert all(torch.equal(clean[key], watched[key]) for key in clean), 'watching changes nothing'
    figures = model.health()
    torch.testing.assert_close(figures['entropy'], clean['teacher_entropy'])
    assert figures['num_prototypes'] == K and 1 <= figures['prototypes in use'] <= K
    pairs = [
        (
            p,
            dict(model.teacher['backbone' if n.startswith('backbone.') else 'neck'].named_parameters())[
                n.split('.', 1)[1]
            ],
        )
        for n, p in model.named_parameters()
        if n.startswith(('backbone.', 'neck.'))
    ]
    apart = sum((s - t).square().sum() for s, t in pairs).sqrt() / sum(t.square().sum() for _, t in pairs).sqrt()
    torch.testing.assert_close(figures['EMA distance'], apart.detach())
    inputs = model.data_preprocessor(copy.deepcopy(data), True)
    features = model.teacher['backbone'](inputs['inputs'][0], data['data_samples']['object_mask'][0])[-1][:, 0].double()
    share = torch.linalg.svdvals(features - features.mean(0)).square()
    assert float(figures['feature spread']) == pytest.approx(float(share.sum() / features.square().sum()), rel=1e-3)
    share = share / share.sum()
    assert float(figures['feature rank']) == pytest.approx(
        math.exp(-(share * share.clamp(min=1e-12).log()).sum()), rel=1e-3
    )
    losses_of(model, data)
    assert not model.watched and model.head.watched is None, 'kept only when asked'


def test_a_healthy_run_is_left_alone(tmp_path):
    warnings, lines = run(tmp_path, grace=0.3)
    assert not names(warnings), warnings
    lines = [line for line in lines if line.startswith('health: ')]
    assert len(lines) == 10
    for figure in ('prototypes in use', 'feature rank', 'feature spread', 'data wait', 'weight growth'):
        assert re.search(rf'{figure} [-\d.e]+ \(good [<>] [\d.]+\)', ' '.join(lines[-1].split())), figure
    assert 'KL' not in lines[-1] and max(map(len, lines[-1].split('\n'))) <= 140
    assert re.search(r'loss/ln K [\d.]+ \(good < 1.3\), entropy/ln K [\d.]+ \(good < 0.99\)', lines[-1])


def test_uniform_collapse_is_named(tmp_path):
    model = make_odis(head=dict(teacher_temp=1.0, center_momentum=1.0))
    warnings, _ = run(tmp_path, model)
    assert names(warnings) == {'uniform collapse'}, warnings
    assert len(warnings) == 1 and 'teacher_temp' in warnings[0], 'told once'


def test_a_run_without_a_signal_is_named(tmp_path):
    model = make_odis(lambda_patch=0.0)
    # no image shows its object twice
    model.head.token_loss = lambda student, teacher, visible: 0.0 * student.float().sum()
    warnings, _ = run(tmp_path, model, grace=0.3)
    assert 'no learning signal' in names(warnings), warnings
    assert 'visible_share' in next(text for text in warnings if 'no learning signal' in text)


@pytest.mark.parametrize('similarity, found', [(0.02, True), (0.6, False)])
def test_entropy_without_attraction_is_named(similarity, found):
    assert ('no attraction' in Limits().faults(Figures(similarity=similarity, loss=-1.0))) == found


def test_divergence_is_named(tmp_path):
    warnings, _ = run(tmp_path, lr=1.0, grace=1.0)
    assert names(warnings) == {'divergence'}, warnings


def test_starvation_is_named(tmp_path, monkeypatch):
    clock = [0.0]  # reading it takes 0.1 s, an image 1 s: the load of the machine has no part in this

    def now():
        clock[0] += 0.1
        return clock[0]

    def wait():
        clock[0] += 1

    monkeypatch.setattr('mmengine.hooks.iter_timer_hook.time', SimpleNamespace(time=now))
    warnings, _ = run(tmp_path, epochs=1, wait=wait, grace=1.0)
    assert names(warnings) == {'starvation'} and 'num_workers' in warnings[0], warnings


@pytest.mark.parametrize(
    'figures, expected',
    [
        ({}, set()),
        (
            {
                'entropy/ln K': 0.8,
                'loss/ln K': 0.9,
                'prototypes in use': 20.0,
                'feature rank': 12.0,
                'feature spread': 0.1,
                'weight growth': 2.0,
                'data wait': 0.2,
            },
            set(),
        ),
        ({'entropy/ln K': 0.999, 'loss/ln K': 0.8}, set()),  # the loss falls
        ({'entropy/ln K': 0.999, 'loss/ln K': 1.0}, {'uniform collapse'}),
        ({'entropy/ln K': 0.999}, {'uniform collapse'}),
        ({'prototypes in use': 1.01, 'loss/ln K': 0.01}, {'one-prototype collapse'}),
        ({'feature rank': 1.1, 'feature spread': 0.2}, {'dimensional collapse'}),
        ({'feature rank': 9.0, 'feature spread': 1e-7}, {'dimensional collapse'}),
        ({'loss/ln K': 1.6}, {'divergence'}),
        ({'weight growth': 50.0}, {'divergence'}),
        ({'data wait': 0.8}, {'starvation'}),
    ],
)
def test_signs(figures, expected):
    assert set(Limits().faults(Figures.labelled(figures))) == expected


def test_collapsed_features_and_prototypes_give_their_figures():
    model = make_odis()
    with torch.no_grad():  # every image the same answer, sharp
        model.teacher['neck'].mlp[-1].weight.zero_()
        model.teacher['neck'].mlp[-1].bias.copy_(model.teacher['neck'].prototypes.weight_v[3])
        model.teacher['backbone'].ln1.weight.zero_()
        model.teacher['backbone'].ln1.bias.fill_(1.0)
    model.head.teacher_temp_cfg = dict(start=0.02, end=0.02, warmup_epochs=0)
    model.watch_health()
    losses_of(model, make_batch())
    figures = {key: float(value) for key, value in model.health().items()}
    assert set(Limits().faults(Figures.labelled(figures))) == {'one-prototype collapse', 'dimensional collapse'}, (
        figures
    )


PROTOTYPES = {'loss/ln K', 'entropy/ln K', 'KL', 'prototypes in use'}


@pytest.mark.parametrize(
    'config, prototypes', [('odis_demo', PROTOTYPES), ('alfm_demo', PROTOTYPES), ('gtsa_demo', set())]
)
def test_shipped_recipes_are_watched(tmp_path, config, prototypes):
    for i in range(10):
        cv2.imwrite(str(tmp_path / f'{i}.png'), demo.render('train', i, 64)[0])
    (tmp_path / '3.png').write_bytes(b'')
    apis.train(
        config,
        work_dir=str(tmp_path / 'work'),
        options={
            'train_cfg.max_epochs': 2,
            'param_scheduler.0.end': 1,
            'param_scheduler.1.begin': 1,
            'default_hooks.checkpoint.interval': 9,
            'train_dataloader.batch_size': 4,
            'train_dataloader.num_workers': 0,
            'train_dataloader.dataset.type': 'ObjectDataset',
            'train_dataloader.dataset.data_root': str(tmp_path),
            'train_dataloader.dataset.data_prefix': '',
            'train_dataloader.dataset.ann_file': '',
            'train_dataloader.dataset.max_bad_share': 0.1,
            'train_dataloader.sampler.seed': 0,
            'train_dataloader.drop_last': False,
            'default_hooks.health.interval': 4,
            'default_hooks.views': None,
        },
    )  # of 6 iterations
    (log,) = (tmp_path / 'work').glob('*/*.log')
    (scalars,) = (tmp_path / 'work').glob('*/vis_data/scalars.json')
    (row,) = (row for row in read_records(scalars) if 'health/data_wait' in row)
    figures = {
        name.removeprefix('health/').replace('_', ' '): value for name, value in row.items() if 'health/' in name
    }
    assert prototypes == PROTOTYPES & set(figures)
    assert {'EMA distance', 'feature rank', 'feature spread', 'weight growth', 'gradient norm', 'data wait'} <= set(
        figures
    )
    assert (
        all(map(math.isfinite, figures.values())) and figures['gradient norm'] > 0 and 1 < figures['feature rank'] < 8
    )
    if prototypes:
        assert figures['KL'] > 0 and 0.1 < figures['entropy/ln K'] < 1 and 0.5 < figures['loss/ln K'] < 3
    (told,) = (line for line in log.read_text().splitlines() if 'bad image' in line)
    assert '1 of 10 so far' in told and '3.png is empty' in told


def test_bad_options_are_told():
    with pytest.raises(ValueError, match='interval and patience'):
        HealthHook(patience=0)
