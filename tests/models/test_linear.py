"""Float32 products on CPUs by oneDNN: the same numbers, where it is taken, and where not."""

import copy
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn import Linear as LinearOfMMCV
from torch import nn

from helpers import make_batch, make_odis
from odis_mm.analysis import cost
from odis_mm.analysis.cost import count_flops, total_loss
from odis_mm.models import linear as module
from odis_mm.models.linear import Linear, linear, onednn_is_faster, plain_linears, product, take_linears

needs_operator = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available() or module.onednn_product() is None, reason='this torch has no oneDNN'
)


@pytest.fixture
def taken(monkeypatch):
    """The products that oneDNN makes, on a machine where it is the faster one."""
    calls, product = [], module.onednn_product()
    monkeypatch.setattr(module, 'onednn_is_faster', lambda: True)

    def counted(x, *args):
        calls.append(tuple(x.shape))
        return product(x, *args)

    monkeypatch.setattr(module, 'onednn_product', lambda: counted)
    return calls


@needs_operator
@pytest.mark.parametrize('shape', [(128, 24), (3, 67, 24), (2, 8, 16, 24)])
@pytest.mark.parametrize('bias', [True, False])
def test_same_as_torch(taken, shape, bias):
    torch.manual_seed(0)
    leaves = [torch.randn(*shape), torch.randn(40, 24)] + [torch.randn(40)] * bias
    grad = torch.randn(*shape[:-1], 40)

    def run(form):
        own = [leaf.clone().requires_grad_() for leaf in leaves]
        out = form(*own)
        return out, *torch.autograd.grad(out, own, grad)

    ours = run(linear)
    assert len(taken) == 3  # one forward, two backward
    for a, b in zip(ours, run(F.linear), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-5)


@needs_operator
@pytest.mark.parametrize('transposed', [False, True])
def test_pairs_of_matrices(taken, transposed):
    torch.manual_seed(0)
    a, b = torch.randn(3, 40, 24), torch.randn(3, 50, 24).mT if transposed else torch.randn(3, 24, 50)
    grad = torch.randn(3, 40, 50)

    def run(form):
        own = [leaf.detach().requires_grad_() for leaf in (a, b)]
        out = form(*own)
        return out, *torch.autograd.grad(out, own, grad)

    ours = run(product)
    assert len(taken) == 9
    for x, y in zip(ours, run(torch.matmul), strict=True):
        torch.testing.assert_close(x, y, atol=1e-4, rtol=1e-5)
    assert product(a[:0], b[:0]).shape == (0, 40, 50)
    assert product(a[:, : module.FEWEST_ROWS - 1], b).shape == (3, module.FEWEST_ROWS - 1, 50) and len(taken) == 9


@needs_operator
def test_rows_that_do_not_lie_together(taken):
    x, weight = torch.randn(24, 300).T, torch.randn(24, 40).T
    torch.testing.assert_close(linear(x, weight), F.linear(x, weight), atol=1e-4, rtol=1e-5)
    assert taken


@needs_operator
def test_only_asked_gradients_are_computed(taken):
    x, weight = torch.randn(200, 24), torch.randn(40, 24, requires_grad=True)
    linear(x, weight).sum().backward()
    assert len(taken) == 2 and weight.grad is not None
    with torch.no_grad():
        assert not linear(x, weight).requires_grad


@needs_operator
def test_half_precision_few_rows_and_other_dtypes_stay_with_torch(taken):
    x, weight = torch.randn(200, 24), torch.randn(40, 24)
    with torch.autocast('cpu', torch.bfloat16):
        assert linear(x, weight).dtype == torch.bfloat16
    linear(x.double(), weight.double())
    linear(x[: module.FEWEST_ROWS - 1], weight)
    linear(x[0], weight)
    linear(x[:0], weight)
    linear(x.to('meta'), weight.to('meta'))
    with plain_linears():
        linear(x, weight)
    assert not taken
    linear(x, weight)
    assert taken


@needs_operator
def test_a_step_has_the_losses_and_gradients_of_torch_s_own_products(taken):
    torch.manual_seed(0)
    model, found, used = make_odis(), [], []
    model.train()
    model.set_progress(500, 1000, 10)
    batch = model.data_preprocessor(make_batch(32), True)
    for mode in (nullcontext, plain_linears):
        torch.manual_seed(1)
        model.zero_grad()
        with mode():
            losses = model.loss(batch['inputs'], batch['data_samples'])
            total_loss(losses).backward()
        found.append([*losses.values(), *(p.grad for p in model.parameters() if p.grad is not None)])
        used.append(len(taken))
        taken.clear()
    assert used[0] and not used[1]
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)


@needs_operator
def test_its_operations_are_counted(taken, monkeypatch):
    monkeypatch.setattr(cost, 'onednn_is_faster', lambda: True)
    x, weight = torch.randn(200, 24, requires_grad=True), torch.randn(40, 24, requires_grad=True)
    assert count_flops(lambda: linear(x, weight).sum().backward()) == 3 * 2 * 200 * 24 * 40
    assert taken


def test_layers_of_other_libraries_take_it_with_their_weights():
    class Own(nn.Linear):
        def forward(self, x):
            return super().forward(x) + 1

    net = nn.Sequential(nn.Linear(8, 8), LinearOfMMCV(8, 8), Own(8, 8), nn.LayerNorm(8))
    before = copy.deepcopy(net)
    take_linears(net)
    assert [type(layer) for layer in net] == [Linear, Linear, Own, nn.LayerNorm]
    assert net.state_dict().keys() == before.state_dict().keys()
    x = torch.randn(5, 8)
    assert torch.equal(net(x), before(x))
    assert type(copy.deepcopy(net)[0]) is Linear


@pytest.mark.parametrize('norm', [nn.utils.spectral_norm, nn.utils.parametrizations.weight_norm])
def test_layers_whose_weights_are_computed_anew_stay(norm):
    net = nn.Sequential(norm(nn.Linear(8, 8)), nn.Linear(8, 8))
    before = copy.deepcopy(net)
    take_linears(net)
    assert type(net[0]) is type(before[0]) and type(net[1]) is Linear
    x = torch.randn(5, 8)
    assert torch.equal(net(x), before(x))


@pytest.mark.parametrize('other', [None, lambda x, weight: x, lambda *_: torch.zeros(3, 4)])
def test_another_torch_s_operator_is_not_taken(monkeypatch, other):
    assert module.onednn_product.__wrapped__() is not None or not torch.backends.mkldnn.is_available()
    monkeypatch.setattr(torch.ops.mkldnn, '_linear_pointwise', other)
    assert module.onednn_product.__wrapped__() is None


@pytest.mark.parametrize(
    ('maker', 'capability', 'expected'),
    [
        ('AuthenticAMD', 'AVX512', True),
        ('GenuineIntel', 'AVX512', False),
        ('AuthenticAMD', 'AVX2', False),
        (None, 'AVX512', False),
    ],
)
def test_told_by_the_processor(monkeypatch, tmp_path, maker, capability, expected):
    info = tmp_path / 'cpuinfo'
    if maker:
        info.write_text(f'processor\t: 0\nvendor_id\t: {maker}\nflags\t: fpu\n')
    monkeypatch.setattr(module, 'Path', lambda _: info)
    monkeypatch.setattr(module, 'onednn_product', lambda: 'operator')
    monkeypatch.setattr(torch.backends.cpu, 'get_cpu_capability', lambda: capability)
    for library in (torch.backends.mkl, torch.backends.mkldnn):
        monkeypatch.setattr(library, 'is_available', lambda: True)
    assert onednn_is_faster.__wrapped__() is expected
