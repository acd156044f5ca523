"""The cross-entropies of self-distillation against loops."""

import math

import pytest
import torch
import torch.nn.functional as F

import odis_mm  # noqa: F401
from helpers import K, make_batch, make_odis
from odis_mm.models.losses import pairwise_cross_entropy, patch_cross_entropy


def test_uniform_output_costs_ln_k():
    targets = torch.softmax(torch.randn(2, 3, 1, K), -1)
    assert pairwise_cross_entropy(targets, torch.zeros(4, 3, 1, K), 0.1).item() == pytest.approx(math.log(K), rel=1e-6)


def test_pairwise_loss_equals_loops():
    torch.manual_seed(0)
    teacher, student = torch.softmax(torch.randn(2, 5, 1, K), -1), torch.randn(4, 5, 1, K)
    visible = torch.rand(5, 4) < 0.6
    pairs = []
    for q in range(2):
        for v in range(4):
            images = [i for i in range(5) if visible[i, q] and visible[i, v]]
            if v != q and images:
                pairs.append(
                    sum(-(teacher[q, i, 0] * F.log_softmax(student[v, i, 0] / 0.1, -1)).sum() for i in images)
                    / len(images)
                )
    torch.testing.assert_close(pairwise_cross_entropy(teacher, student, 0.1, visible), sum(pairs) / len(pairs))


def test_no_visible_object_gives_zero_with_a_graph():
    student = torch.randn(3, 2, 1, K, requires_grad=True)
    loss = pairwise_cross_entropy(
        torch.softmax(torch.randn(2, 2, 1, K), -1), student, 0.1, torch.zeros(2, 3, dtype=torch.bool)
    )
    loss.backward()
    assert loss.item() == 0 and student.grad.abs().max() == 0


def test_patch_loss_equals_loops():
    model, data = make_odis(), make_batch()
    samples = model.data_preprocessor(data, True)['data_samples']
    mask = data['data_samples']['mim_mask']
    teacher, student = torch.softmax(torch.randn(6, 16, K), -1), torch.randn(6, 16, K)
    per_image = [
        sum(-(teacher[i, n] * F.log_softmax(student[i, n] / 0.1, -1)).sum() for n in mask[i].nonzero().flatten())
        / mask[i].sum()
        for i in range(6)
        if mask[i].any()
    ]
    at = samples['mim_index']
    torch.testing.assert_close(
        patch_cross_entropy(teacher.flatten(0, 1)[at], student.flatten(0, 1)[at], 0.1, samples['mim_weight']),
        sum(per_image) / 6,
    )
