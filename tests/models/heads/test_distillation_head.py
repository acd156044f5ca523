"""The distillation head: centers, and Sinkhorn against loops."""

import pytest
import torch
from mmpretrain.registry import MODELS

import odis_mm  # noqa: F401
from helpers import K, losses_of, make_batch, make_odis
from odis_mm import apis
from odis_mm.models.heads import Center, DistillationHead, sinkhorn_knopp
from odis_mm.utils.errors import ConfigError


def test_center_is_a_running_mean_and_moves_once_per_step():
    center = Center(K, 0.9)
    first, second = torch.randn(4, K), torch.randn(2, 3, K)
    center.observe(first)
    center.observe(second)
    assert center.value.abs().max() == 0, 'only an optimizer step moves it'
    center.step()
    torch.testing.assert_close(center.value, 0.1 * torch.cat((first, second.flatten(0, 1))).mean(0))
    before = center.value.clone()
    center.step()  # nothing observed
    torch.testing.assert_close(center.value, before)


def test_center_of_all_patches_equals_that_of_their_logits():
    model, data = make_odis(head=dict(patch_center='all')), make_batch()
    losses_of(model, data)
    views = model.data_preprocessor(data, True)
    with torch.no_grad():
        patches = model.teacher['backbone'](views['inputs'][0], views['data_samples']['object_mask'][0])[-1][:, 1:]
        expected = model.teacher['neck'](patches).flatten(0, 1).mean(0)
    model.head.step()
    torch.testing.assert_close(model.head.patch_center.value, 0.1 * expected)


def test_wrong_patch_center_is_named():
    with pytest.raises(ValueError, match="patch_center is 'some'"):
        DistillationHead(K, patch_center='some')


@pytest.mark.parametrize('shape', [(7, K), (2, 5, 1, K)])
def test_sinkhorn_equals_loops_and_converges_to_equal_use(shape):
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    rows = torch.exp(logits.double().flatten(0, -2) / 0.2)
    for _ in range(3):
        for k in range(K):
            rows[:, k] /= rows[:, k].sum()
        for row in rows:
            row /= row.sum()
    torch.testing.assert_close(sinkhorn_knopp(logits, 0.2), rows.float().view(shape), atol=1e-5, rtol=1e-4)
    even = sinkhorn_knopp(logits, 0.2, iterations=300).flatten(0, -2)
    torch.testing.assert_close(even.sum(0), torch.full((K,), len(even) / K), atol=1e-3, rtol=0)
    torch.testing.assert_close(even.sum(1), torch.ones(len(even)))


@pytest.mark.parametrize('norms', ['of prototypes', 'of rows'])
def test_sinkhorn_balances_logits_whose_exponentials_vanish(norms):
    """Norms of prototypes, where they are learned, may grow: rows and prototypes far below the largest logit count as
    all others do."""
    logits = torch.randn(9, K, generator=torch.Generator().manual_seed(0))
    scale = 10 * torch.arange(1.0, (K if norms == 'of prototypes' else 9) + 1)
    logits = logits * scale if norms == 'of prototypes' else logits - scale[:, None]
    rows = logits.double() / 0.04
    for _ in range(3):
        rows = (rows - rows.logsumexp(0)).log_softmax(1)
    out = sinkhorn_knopp(logits, 0.04)
    torch.testing.assert_close(out, rows.exp().float(), atol=1e-3, rtol=0)
    torch.testing.assert_close(out.sum(1), torch.ones(9))


def test_sinkhorn_survives_far_logits_and_no_rows():
    far = torch.zeros(3, K)
    far[:, 0] = 1000.0  # alike in all rows: no reason to use it more than the others
    torch.testing.assert_close(sinkhorn_knopp(far, 0.04), torch.full((3, K), 1 / K))
    assert sinkhorn_knopp(torch.zeros(0, K), 0.04).shape == (0, K)


def test_sinkhorn_leaves_out_rows_that_do_not_count():
    logits = torch.randn(2, 5, K, generator=torch.Generator().manual_seed(0))
    counted = torch.tensor([[True, False, True, True, False], [False, True, True, False, True]])
    out = sinkhorn_knopp(logits, 0.2, counted=counted)
    torch.testing.assert_close(out[counted], sinkhorn_knopp(logits[counted], 0.2))
    assert (out[~counted] == 0).all() and (sinkhorn_knopp(logits, 0.2, counted=torch.zeros_like(counted)) == 0).all()


def test_sinkhorn_head_and_wrong_balance():
    head = DistillationHead(K, teacher_temp=0.05, balance='sinkhorn')
    logits = torch.randn(2, 3, 1, K)
    torch.testing.assert_close(head.targets(logits, head.token_center), sinkhorn_knopp(logits, 0.05))
    with pytest.raises(ValueError, match="balance is 'none'"):
        DistillationHead(K, balance='none')


@pytest.mark.parametrize('recipe', ['odis_vits_coco', 'ibot_vits_coco', 'alfm_vits_coco'])
def test_the_teacher_temperature_moves_per_iteration_over_thirty_epochs(recipe):
    """By hand, with the 231 iterations that COCO's 118,287 images give at 512; iBOT's release steps once per epoch."""
    model = make_odis()
    model.head = MODELS.build(apis.load_config(recipe).model.head)

    def ours(iteration):
        model.set_progress(iteration, 23100, 231)
        return model.head.teacher_temp

    def release(iteration):
        return min(0.04 + iteration // 231 * 0.03 / 29, 0.07)

    # iteration: (ours, the release): the first two; the end of an epoch, the next one; half-way; epoch 29, its end
    for iteration, (wanted, stepped) in {
        0: (0.04, 0.04),
        1: (0.0400043290, 0.04),
        230: (0.0409956710, 0.04),
        231: (0.041, 0.0410344828),
        3465: (0.055, 0.0555172414),
        6699: (0.069, 0.07),
        6929: (0.0699956710, 0.07),
        6930: (0.07, 0.07),
        23099: (0.07, 0.07),
    }.items():
        assert ours(iteration) == pytest.approx(wanted, abs=1e-9), iteration
        assert release(iteration) == pytest.approx(stepped, abs=1e-9), iteration
    # as the comment beside the number tells
    apart = max(abs(ours(iteration) - release(iteration)) for iteration in range(7000))
    assert apart == pytest.approx(0.001, abs=1e-9) and ours(6699) == pytest.approx(release(6699) - 0.001)


@pytest.mark.parametrize(
    'options, told',
    [
        (dict(student_temp=-0.1), 'model.head.student_temp must be a positive number, got -0.1'),
        (dict(teacher_temp=0), 'model.head.teacher_temp.start must be a positive number, got 0'),
        (dict(teacher_temp=dict(start=0.04, warmup_epochs=30)), 'model.head.teacher_temp.end .* got None'),
        (dict(teacher_temp=dict(start=0.04, end=0.07)), 'model.head.teacher_temp.warmup_epochs .* got None'),
        (dict(teacher_temp=[0.04, 0.07]), 'model.head.teacher_temp.start'),
        (dict(center_momentum=2), r'model.head.center_momentum must lie within \[0, 1\], got 2'),
    ],
)
def test_temperatures_and_momenta_that_are_none_are_told(options, told):
    with pytest.raises(ConfigError, match=told):
        DistillationHead(K, **options)
