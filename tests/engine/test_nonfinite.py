"""A loss or gradient that is not finite: the step is skipped as a whole, the run ends after several, the batch can be
replayed."""

import logging
import math
import os
import re
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import Hook

import odis_mm  # noqa: F401
from helpers import ODIS_CONFIG, make_batch, make_odis, odis_runner
from odis_mm.cli.replay import replay_main
from odis_mm.engine.hooks import NonFiniteLossHook
from odis_mm.engine.loops import random_state, set_random_state
from odis_mm.engine.optim import SafeOptimWrapper
from odis_mm.engine.replay import replay


class States(Hook):
    """What a step must not touch, before the first iteration and after each."""

    def __init__(self):
        self.seen = []

    def note(self, runner):
        optimizer = runner.optim_wrapper.optimizer.state_dict()['state']
        self.seen.append(
            {
                **runner.model.state_dict(),
                'pending': runner.model.head.token_center.pending,
                **{f'optimizer.{i}.{k}': v for i, entry in optimizer.items() for k, v in entry.items()},
            }
        )
        self.seen[-1] = {key: value.clone() for key, value in self.seen[-1].items()}

    def before_train(self, runner):
        self.note(runner)

    def after_train_iter(self, runner, *args, **kwargs):
        self.note(runner)


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize('accumulate, skipped, taken', [(1, (1, 5), (0, 2, 3, 4, 6, 7)), (2, (0, 1, 4, 5), (3, 7))])
def test_a_non_finite_step_is_skipped_as_a_whole(tmp_path, accumulate, skipped, taken):
    states = States()
    # has statistics that a forward pass feeds
    model = make_odis(momentum=dict(start=0.5, end=1.0), neck=dict(norm_cfg=dict(type='BN1d')))
    runner = odis_runner(tmp_path, nan_at=(1,), accumulate=accumulate, optimizer='AdamW', hooks=[states], model=model)
    told = []
    runner.logger.addHandler(type('Ears', (logging.Handler,), dict(emit=lambda self, record: told.append(record)))())
    runner.train()
    seen = states.seen
    for i in skipped:
        # of two accumulated iterations, the first feeds the batch norms, which the second puts back
        assert same(seen[i + 1], seen[i]) if accumulate == 1 else i % 2 == 0 or same(seen[i + 1], seen[i - 1]), i
    for i in taken:
        assert not torch.equal(seen[i + 1]['teacher.backbone.pos_embed'], seen[i]['teacher.backbone.pos_embed']), i
        assert not torch.equal(seen[i + 1]['head.token_center.value'], seen[i]['head.token_center.value']), i
    assert all(value.isfinite().all() for value in seen[-1].values())
    told = [
        record.getMessage()
        for record in told
        if record.levelno == logging.WARNING and 'not finite' in record.getMessage()
    ]
    assert len(told) == 2
    assert re.match(
        r'loss_obj, teacher_entropy are not finite at iteration 2, images img/7.jpg, img/8.jpg; the batch is saved: '
        r'odis-mm replay CONFIG .*nonfinite_iter_2.pth. The step is skipped \(1 in a row; 3 end',
        told[0],
    ), told


def test_too_many_in_a_row_end_the_run_and_can_be_replayed(tmp_path, capsys):
    runner = odis_runner(tmp_path, nan_at=(1, 2, 3), nonfinite=dict(keep=2))
    with pytest.raises(
        FloatingPointError, match='loss_obj.* at iteration 4, .* 3 steps in a row .* last good checkpoint: none'
    ):
        runner.train()
    files = sorted(f for f in os.listdir(tmp_path) if f.endswith('.pth'))
    assert files == ['nonfinite_iter_2.pth', 'nonfinite_iter_3.pth'], 'no checkpoint, and only so many batches'
    saved = torch.load(tmp_path / files[1], weights_only=True)
    assert (
        saved['images'] == ['img/7.jpg', 'img/8.jpg']
        and saved['iteration'] == 2
        and math.isnan(saved['terms']['loss_obj'])
    )
    before = random_state()
    terms, module = replay(runner.model, saved)
    assert module == 'data_preprocessor' or module == 'backbone.patch_embed.projection', module
    assert set(terms) == {'loss_obj', 'loss_patch', 'visible_share', 'teacher_entropy'} and math.isnan(
        terms['loss_obj']
    )
    set_random_state(before)
    # a sound batch and a module that is not
    saved['batch'] = make_batch(batch=2, seed=2)
    assert replay(runner.model, saved)[1] == ''
    with torch.no_grad():
        runner.model.backbone.layers[1].ffn.layers[1].weight[0] = float('inf')
    terms, module = replay(runner.model, saved)
    assert module == 'backbone.layers.1.ffn.layers.1'
    (
        torch.save(saved, tmp_path / 'file.pth'),
        torch.save(dict(state_dict=runner.model.state_dict()), tmp_path / 'weights.pth'),
    )
    (tmp_path / 'config.py').write_text(f'model = {ODIS_CONFIG!r}\n')
    replay_main(
        [str(tmp_path / 'config.py'), str(tmp_path / 'file.pth'), '--checkpoint', str(tmp_path / 'weights.pth')]
    )
    said = capsys.readouterr().out
    assert 'iteration 3, images img/7.jpg, img/8.jpg' in said and 'loss_obj: nan (in the run: nan)' in said
    assert 'first module with an output that is not finite: backbone.layers.1.ffn.layers.1' in said


def test_a_gradient_alone_is_judged_too_unless_a_loss_scaler_does():
    for scaler, value in ((False, 0.0), (True, -math.inf)):
        weight = torch.nn.Parameter(torch.zeros(2))  # sqrt: loss 0, gradient infinite
        model = torch.nn.Module()
        model.weight = weight
        wrapper, hook = SafeOptimWrapper(torch.optim.SGD([weight], lr=1.0)), NonFiniteLossHook()
        if scaler:
            wrapper.loss_scaler = None
        hook.before_train(SimpleNamespace(model=model, optim_wrapper=wrapper))
        wrapper.update_params(weight.sqrt().sum())
        assert weight.tolist() == [value] * 2 and wrapper.step_skipped is not scaler
        assert weight.grad is None
