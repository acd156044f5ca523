"""Weight decay beside mmpretrain's scheduler: the same values, until a run is resumed with another length."""

import pytest
import torch
from mmpretrain.engine.schedulers import CosineAnnealingWeightDecay

from odis_mm.utils.schedules import cosine

START, END = 0.04, 0.4


def optimizer():
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [dict(params=parameters[:1]), dict(params=parameters[1:], weight_decay=0.0)]
    return torch.optim.AdamW(groups, lr=1.0, weight_decay=START)


def decays(scheduler, steps):
    seen = []
    for _ in range(steps):
        seen.append([group['weight_decay'] for group in scheduler.optimizer.param_groups])
        scheduler.optimizer.step()
        scheduler.step()
    return seen


def test_an_undisturbed_run_has_mmpretrain_s_weight_decay():
    scheduler = CosineAnnealingWeightDecay(optimizer(), T_max=300, eta_min=END)
    for step, (decay, none) in enumerate(decays(scheduler, 300)):
        assert decay == pytest.approx(cosine(START, END, step, 300), rel=1e-9) and none == 0


def test_a_prolonged_run_is_why_ours_stays():
    first = CosineAnnealingWeightDecay(optimizer(), T_max=20, eta_min=END)
    decays(first, 10)
    second = CosineAnnealingWeightDecay(optimizer(), T_max=40, eta_min=END)
    second.load_state_dict(first.state_dict())
    assert second.T_max == 20, 'mmpretrain follows the new length: take its scheduler'
