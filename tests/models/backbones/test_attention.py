"""The softmax of attention in half precision on CPUs."""

import pytest
import torch

from odis_mm.models.backbones.attention import onednn_has_bf16, softmax


@pytest.mark.skipif(not onednn_has_bf16(), reason='this processor has no bf16 by oneDNN')
@pytest.mark.parametrize('shape', [(12, 50, 50), (3, 1, 1), (2, 257, 33)])
def test_softmax_in_bf16_is_as_near_to_float32_as_torchs(shape):
    torch.manual_seed(0)
    scores = (3 * torch.randn(shape)).bfloat16()
    if shape[-1] > 2:
        scores[0, 0, 1:3] = -torch.inf  # masked keys
    ours, theirs = scores.clone().requires_grad_(), scores.clone().requires_grad_()
    result, plain = softmax(ours), theirs.softmax(-1)
    assert type(result.grad_fn).__name__ == '_SoftmaxBackward' and type(result) is torch.Tensor
    exact = scores.float().softmax(-1)
    torch.testing.assert_close(result.float(), exact, atol=0, rtol=2**-8)  # half a unit of bf16's last place
    assert not result[scores == -torch.inf].any()

    grad = torch.randn(shape).bfloat16()
    result.backward(grad), plain.backward(grad)
    assert ours.grad.isfinite().all()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=2**-7, rtol=2**-6)


def test_softmax_in_float32_is_torchs():
    scores = torch.randn(3, 4, 4, requires_grad=True)
    assert torch.equal(softmax(scores), scores.softmax(-1))
    assert type(softmax(scores).grad_fn).__name__ == 'SoftmaxBackward0'
