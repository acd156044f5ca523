"""The hooks in a real run."""

import copy
import os

import pytest
import torch

import odis_mm  # noqa: F401
from helpers import odis_runner


def test_a_run_moves_the_teacher_and_exports_it(tmp_path):
    runner = odis_runner(tmp_path)
    start = copy.deepcopy(runner.model.state_dict())
    moves, seen = [], []
    original = runner.model.update_teacher
    runner.model.update_teacher = lambda: (moves.append(runner.model.momentum), original())[1]

    before = runner.model.set_progress
    runner.model.set_progress = lambda *a: (
        seen.append(runner.optim_wrapper.optimizer.param_groups[0]['weight_decay']),
        before(*a),
    )[1]
    prototypes = []
    step_end = runner.model.head.step
    runner.model.head.step = lambda: (prototypes.append(runner.model.neck.prototypes.weight_v.clone()), step_end())[1]
    runner.train()
    assert len(moves) == 8 and moves[0] == 0.5 and moves == sorted(moves) and moves[-1] < 1
    assert all(torch.equal(p, start['neck.prototypes.weight_v']) for p in prototypes[:4]), 'no gradient in epoch 0'
    assert not torch.equal(prototypes[4], prototypes[3])
    groups = runner.optim_wrapper.optimizer.param_groups
    assert len(groups) == 2 and groups[1]['weight_decay'] == 0 and 0.3 < groups[0]['weight_decay'] < 0.4
    end = runner.model.state_dict()
    assert not torch.equal(end['teacher.backbone.pos_embed'], start['teacher.backbone.pos_embed'])
    assert end['head.token_center.value'].abs().max() > 0
    # the first checkpoint was pruned, and its export with it
    assert sorted(f for f in os.listdir(tmp_path) if f.endswith('.pth')) == ['epoch_2.pth', 'epoch_2_backbone.pth']
    exported = torch.load(tmp_path / 'epoch_2_backbone.pth', weights_only=True)['state_dict']
    assert all(torch.equal(v, end[f'teacher.{k}']) for k, v in exported.items())
    assert set(exported) == {k.removeprefix('teacher.') for k in end if k.startswith('teacher.backbone.')}


def test_accumulation_moves_teacher_and_centers_once_per_optimizer_step(tmp_path):
    runner = odis_runner(tmp_path, epochs=1, accumulate=2)
    counts = dict(teacher=0, center=0)

    def count(name, function):
        def counted():
            counts[name] += 1
            return function()

        return counted

    runner.model.update_teacher = count('teacher', runner.model.update_teacher)
    runner.model.head.step = count('center', runner.model.head.step)
    runner.train()
    assert counts == dict(teacher=2, center=2)


def test_resume_continues(tmp_path):
    full = odis_runner(tmp_path / 'full', epochs=2)
    full.train()
    first = odis_runner(tmp_path / 'parts', epochs=2)

    class Stop(Exception):
        pass

    def stop(*_):
        if first.epoch == 1:
            raise Stop

    original = first.model.set_progress
    first.model.set_progress = lambda *a: (stop(), original(*a))[1]
    with pytest.raises(Stop):
        first.train()
    second = odis_runner(tmp_path / 'parts', epochs=2, resume=True)
    with torch.no_grad():
        second.model.mask_token.add_(5)  # whatever it starts from must not matter
    second.train()
    for key, value in full.model.state_dict().items():
        torch.testing.assert_close(second.model.state_dict()[key], value, msg=key)
