"""What a training step costs, counted from the shapes of its tensors: nothing is computed, so any model takes seconds
anywhere."""

import contextlib
import copy
import math
import weakref
from dataclasses import dataclass, replace
from typing import Callable, Dict, Iterator, Optional

import torch
from mmcv.cnn.bricks import DropPath
from mmpretrain.registry import MODELS
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode  # torch gives these three no public name
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakIdKeyDictionary

from ..models.backbones import ObjectViT
from ..models.backbones.attention import Form
from ..models.backbones.stochastic_depth import Path, draw_path, keep_images
from ..models.linear import onednn_is_faster, onednn_product


@dataclass(frozen=True)
class StepCost:
    """Of one training step on one device.

    Attributes:
        flops: Of matrix products, convolutions and attention; a multiply-add counts 2; recomputation is not counted,
            nor, on CPUs, what stochastic depth is expected to drop. 0 where they were not asked for.
        resting: Bytes of parameters, teacher, buffers and optimizer state.
        peak: Bytes at the fullest moment of forward and backward pass, ``resting`` and gradients included. A device
            adds its context, and what its allocator and kernels set aside.
    """

    flops: int
    resting: int
    peak: int


def _attention(query, key, *_, **__) -> int:
    batch, heads, rows, width = query
    return 4 * batch * heads * rows * key[2] * width


def _attention_backward(_grad, query, key, *_, **__) -> int:
    return 2 * _attention(query, key)  # four products of the forward pass's size; the scores' recomputation is left out


def _product(x, weight, *_, **__) -> int:
    return 2 * math.prod(x) * weight[0]


def _own_flops() -> Dict[object, Callable]:
    """The fused kernels, none of which torch counts on CPUs, and whose backward pass it counts with the recomputation
    elsewhere; and the product of :mod:`~odis_mm.models.linear`."""
    found = {onednn_product(): _product} if onednn_is_faster() else {}
    for name in ('flash_attention_for_cpu', 'flash_attention', 'efficient_attention', 'cudnn_attention'):
        for suffix, count in (('', _attention), ('_backward', _attention_backward)):
            op = getattr(torch.ops.aten, f'_scaled_dot_product_{name}{suffix}', None)
            if op is not None:
                found[op] = count
    return found


def count_flops(work: Callable[[], object]) -> int:
    """Floating-point operations of what ``work()`` calls, by the shapes that its operators see."""
    with FlopCounterMode(display=False, custom_mapping=_own_flops()) as counter:
        work()
    return counter.get_total_flops()


class Allocations(TorchDispatchMode):
    """Bytes of the tensors that exist, and their greatest sum, for what runs inside.

    Works alike on real and fake tensors of any device; what a kernel allocates and frees within one operator is not
    seen.
    """

    def __init__(self):
        super().__init__()
        self.current = self.peak = 0
        self._seen = WeakIdKeyDictionary()

    def add(self, tensor: Tensor) -> None:
        """Counts the tensor's storage until it is freed; a view of a counted one adds nothing."""
        if tensor.is_mkldnn:  # without a storage, and gone with the operator that needs it
            return
        storage = tensor.untyped_storage()
        if storage in self._seen:
            return
        size = storage.nbytes()
        self._seen[storage] = size
        weakref.finalize(storage, self._free, size).atexit = False
        self.current += size
        self.peak = max(self.peak, self.current)

    def _free(self, size: int) -> None:
        self.current -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self.add, out)
        return out


def total_loss(losses: Dict[str, Tensor]) -> Tensor:
    """What is minimised: the sum of the entries with ``loss`` in their name, as mmengine has it."""
    return sum(value for name, value in losses.items() if 'loss' in name)


def count_step(
    model_cfg: dict,
    data: dict,
    losses_of: Optional[Callable] = None,
    bf16: bool = False,
    accumulated: bool = False,
    device: str = 'cpu',
    flops: bool = True,
) -> StepCost:
    """Cost of one step (forward, backward, AdamW, EMA) of a teacher-student model.

    Args:
        model_cfg: The ``model`` of a config; not changed.
        data: What its preprocessor returns for training: normalised ``inputs`` [V_r * B, 3, H, W] per resolution and
            ``data_samples``.
        losses_of: ``losses_of(model)(inputs, data_samples)`` gives the losses; default: the model's own.
        bf16: In autocast.
        accumulated: Gradients of earlier batches of the same optimizer step are there.
        device: Its type: attention and stochastic depth take other forms on CPUs than elsewhere.
        flops: Count them, too; a model that recomputes is gone through a second time for it.
    """
    cfg = copy.deepcopy(dict(model_cfg))
    recomputes = bool(cfg['backbone'].get('with_cp', False))
    cfg['backbone'].pop('compiled', None)
    step = _simulate(cfg, data, losses_of, bf16, accumulated, device, flops and not recomputes)
    if flops and recomputes:
        cfg['backbone'] = {**cfg['backbone'], 'with_cp': False}
        return replace(step, flops=_simulate(cfg, data, losses_of, bf16, False, device, True).flops)
    return step


class _FormOfGPUs:
    """Attention and stochastic depth in the form that they have on GPUs."""

    def form_of(self, x: Tensor) -> Form:
        return Form.ROWS


class _ExpectedPaths:
    """Stochastic depth that drops as often as expected in place of drawing, so that a step can be counted without
    values."""

    def draw_path(self, drop: Optional[nn.Module], x: Tensor, shapes, skip: bool, rows: bool = False) -> Path:
        rate = drop.drop_prob if isinstance(drop, DropPath) and drop.training else 0
        if not rate or not skip:
            return draw_path(drop, x, shapes, skip)
        keep = 1 - rate
        flags = [round((i + 1) * keep) > round(i * keep) for i in range(sum(batch for batch, _ in shapes))]
        return keep_images(flags, shapes, [1 / keep] * len(shapes))


@contextlib.contextmanager
def behaving(model: nn.Module, *kinds: type) -> Iterator[None]:
    """Within, each ``ObjectViT`` of a model has the methods of ``kinds`` in place of its own."""
    vits = [(module, type(module)) for module in model.modules() if isinstance(module, ObjectViT)]
    for module, own in vits:
        module.__class__ = type(own.__name__, (*kinds, own), {})
    try:
        yield
    finally:
        for module, own in vits:
            module.__class__ = own


def forms_of_gpus(model: nn.Module) -> contextlib.AbstractContextManager:
    """Within, what a model needs on GPUs can be counted and tested without one."""
    return behaving(model, _FormOfGPUs)


def _simulate(
    cfg: dict, data: dict, losses_of: Optional[Callable], bf16: bool, accumulated: bool, device: str, flops: bool
) -> StepCost:
    kinds = (_ExpectedPaths,) if device == 'cpu' else (_FormOfGPUs,)
    with torch.device('meta'):
        model = MODELS.build(cfg)
    model.train()
    data = tree_map_only(Tensor, lambda t: t.detach().cpu(), data)
    with FakeTensorMode() as fake, behaving(model, *kinds), contextlib.ExitStack() as stack:
        data = tree_map_only(Tensor, fake.from_tensor, data)
        _to_fake(model)
        everything_on(model)
        model.all_there = True  # of ODIS: how many pooled objects are there depends on values
        losses_of = model.loss if losses_of is None else losses_of(model)
        counter = FlopCounterMode(display=False, custom_mapping=_own_flops())
        if flops:  # it keeps tensors alive that activation checkpointing frees: never while those are weighed
            stack.enter_context(counter)
        tracker = stack.enter_context(Allocations())
        for tensor in (*model.parameters(), *model.buffers()):
            tracker.add(tensor)
        trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
        resting = tracker.current + 2 * trained  # AdamW's two moments
        tree_map_only(Tensor, tracker.add, data)
        for _ in range(1 + accumulated):
            before = counter.get_total_flops()
            with torch.autocast('cpu', torch.bfloat16, enabled=bf16):
                loss = total_loss(losses_of(data['inputs'], data['data_samples']))
            loss.backward()
            counted = counter.get_total_flops() - before
            del loss
        return StepCost(counted, resting, tracker.peak + 2 * trained)


def _to_fake(model: nn.Module) -> None:
    """Replaces meta tensors by fake ones of a CPU: fake ones cannot be deep-copied, as the teacher's constructor
    does."""
    for module in model.modules():
        for name, value in module.named_parameters(recurse=False):
            module._parameters[name] = nn.Parameter(torch.empty(value.shape, dtype=value.dtype), value.requires_grad)
        for name, value in module.named_buffers(recurse=False):
            module._buffers[name] = torch.empty(value.shape, dtype=value.dtype)


def everything_on(model: nn.Module) -> None:
    """Sets the schedules behind every warm-up and switched-on loss."""
    model.set_progress(500, 1000, 1)
