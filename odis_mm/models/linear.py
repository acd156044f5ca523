"""Linear layers and products of matrices that, in float32 on CPUs, take the faster of torch's two libraries.

torch gives float32 products on CPUs to MKL, which on processors that are not Intel's keeps to AVX2. oneDNN, which torch
has for convolutions and bf16, uses AVX-512 wherever there is any (docs/benchmarks/odis_step.md).
"""

import contextlib
import time
from functools import cache
from pathlib import Path
from typing import Callable, Iterator, Optional

import torch
import torch.nn.functional as F
from mmcv.cnn import Linear as LinearOfMMCV
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

FEWEST_ROWS = 32  # oneDNN brings weights into an order of its own, which fewer rows would not repay
_PLAIN = (nn.Linear.forward, LinearOfMMCV.forward)
_TENSORS = (Tensor, nn.Parameter)
_plain_only = False


class Linear(nn.Linear):
    """``nn.Linear`` by :func:`linear`: same parameters, same names."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x W^T + b: [..., in_features] -> [..., out_features]."""
        return linear(x, self.weight, self.bias)


def take_linears(module: nn.Module) -> None:
    """Replace the plain ``nn.Linear`` layers within ``module``, which other libraries built, by :class:`Linear` ones of
    the same parameters."""
    for parent in list(module.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, nn.Linear) and type(layer).forward in _PLAIN and _is_bare(layer):
                ours = Linear(layer.in_features, layer.out_features, layer.bias is not None, device='meta')
                ours.weight, ours.bias = layer.weight, layer.bias
                setattr(parent, name, ours.train(layer.training))


def _is_bare(layer: nn.Linear) -> bool:
    """Whether a layer is nothing but its parameters: normed weights are computed anew from others, by hooks or not."""
    return set(layer._parameters) == {'weight', 'bias'} and not (layer._forward_hooks or layer._forward_pre_hooks)


def linear(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    """Do as ``F.linear`` ([..., n] by [m, n] to [..., m]), to rounding, by the library that is faster where it runs."""
    if not _by_onednn(x, weight):
        return F.linear(x, weight, bias)
    return _OneDNN.apply(x.flatten(0, -2), weight, bias).unflatten(0, x.shape[:-1])


def product(a: Tensor, b: Tensor) -> Tensor:
    """Return a @ b of pairs of matrices, [B, n, c] by [B, c, m] to [B, n, m], by the library as :func:`linear`."""
    if not (len(a) and _by_onednn(a[0], b[0])):
        return a @ b
    return torch.stack([linear(x, y.T) for x, y in zip(a.unbind(), b.unbind())])


@contextlib.contextmanager
def plain_linears() -> Iterator[None]:
    """Within, :func:`linear` is ``F.linear``: what other code, which it is measured beside, would do."""
    global _plain_only
    before, _plain_only = _plain_only, True
    try:
        yield
    finally:
        _plain_only = before


@cache
def bf16_slowdown() -> float:
    """Return how many times as long as in float32 a product of matrices takes in bf16, on this CPU. Some have
    instructions for it that are slower."""
    times = []
    for dtype in (torch.bfloat16, torch.float32):
        x, spent = torch.ones(512, 512, dtype=dtype), []
        for _ in range(5):  # the first one prepares
            begin = time.perf_counter()
            linear(x, x)
            spent.append(time.perf_counter() - begin)
        times.append(min(spent))
    return times[0] / times[1]


@cache
def onednn_is_faster() -> bool:
    """Return whether this machine is one whose float32 products MKL makes at half of oneDNN's speed.

    Told by the processor, not by timing: what runs twice on a machine must take the same way, and give the same bits.
    """
    has_both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    if not has_both or torch.backends.cpu.get_cpu_capability() != 'AVX512':
        return False
    try:
        makers = {line for line in Path('/proc/cpuinfo').read_text().splitlines() if line.startswith('vendor_id')}
    except OSError:  # no Linux
        return False
    return bool(makers) and not any('Intel' in line for line in makers) and onednn_product() is not None


@cache
def onednn_product() -> Optional[Callable]:
    """Return torch's operator, whose arguments are x, weight, bias, 'none', [], ''; None: this torch has another or
    none, as its name is not public."""
    found = getattr(torch.ops.mkldnn, '_linear_pointwise', None)
    x, weight, bias = torch.ones(3, 2), torch.arange(8.0).view(4, 2), torch.ones(4)
    try:
        same = torch.equal(found(x, weight, bias, 'none', [], ''), F.linear(x, weight, bias))
    except (RuntimeError, TypeError):  # a missing operator is None, which cannot be called
        return None
    return found if same else None


def _by_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        not (_plain_only or torch.compiler.is_compiling() or torch.jit.is_tracing())
        and x.device.type == 'cpu'
        and x.dtype == weight.dtype == torch.float32
        and x.ndim > 1
        and x.numel() >= FEWEST_ROWS * x.shape[-1]
        and type(x) in _TENSORS  # neither sharded nor without values
        and type(weight) in _TENSORS
        and not torch.is_autocast_enabled('cpu')
        and onednn_is_faster()
    )


class _OneDNN(torch.autograd.Function):
    """Three products of rows [R, n], each in the only form that the operator has: a b^T."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        x = x.contiguous()
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return onednn_product()(x, weight, bias, 'none', [], '')

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        grad, needs = grad.contiguous(), ctx.needs_input_grad
        return (
            _times_transposed(grad, weight.T) if needs[0] else None,
            _of_weight(weight, grad, x) if needs[1] else None,
            grad.sum(0) if ctx.has_bias and needs[2] else None,
        )


def _times_transposed(a: Tensor, b: Tensor) -> Tensor:
    """a b^T of [n, c] and [m, c], which may be transposed views: the operator takes such as they are."""
    return onednn_product()(a, b, None, 'none', [], '')


def _of_weight(weight: Tensor, grad: Tensor, x: Tensor) -> Tensor:
    """The gradient of a weight [m, n], in its layout: in :func:`product` it is a transposed view."""
    if weight.is_contiguous():
        return _times_transposed(grad.T, x.T)
    return _times_transposed(x.T, grad.T).T
