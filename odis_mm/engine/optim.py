"""Optimizer steps: parameter groups, gradient clipping, mixed precision, and skipping a step that is not finite."""

from contextlib import contextmanager
from typing import Dict, Iterable, List, Optional, Tuple

import torch
from mmengine.dist import all_reduce
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.runner.amp import autocast
from mmpretrain.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from torch import Tensor, nn

from ..utils.distributed import unwrap, whole
from ..utils.errors import ConfigError
from .deferred import defer_scalar

NO_DECAY = ('cls_token', 'pos_embed', 'mask_token', 'object_tokens', 'register_tokens', 'weight_g')


@torch.no_grad()
def clip_each_grad_(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Clip the l2 norm of each parameter's gradient by itself, in place, as DINO and its descendants do.

    All norms come from one fused kernel and are read by the host at once (one wait for the device); of the gradients
    only those above ``max_norm`` are touched, again by one kernel. Gradients in parts (FSDP) are clipped by the norm of
    all parts: one reduction for all.

    Args:
        parameters: With gradients, on one device.
        max_norm: Largest norm that a gradient keeps.

    Returns:
        The norm of all gradients together before clipping, as ``torch.nn.utils.clip_grad_norm_`` returns it.
    """
    gradients = [parameter.grad for parameter in parameters]
    sharded = [gradient for gradient in gradients if hasattr(gradient, 'to_local')]
    local = [gradient.to_local() if hasattr(gradient, 'to_local') else gradient for gradient in gradients]
    norms = torch.stack([norm.float() for norm in torch._foreach_norm(local)])
    if sharded:
        squares = norms.square()
        torch.distributed.all_reduce(squares, group=sharded[0].device_mesh.get_group())
        norms = squares.sqrt()
    factors = (max_norm / (norms + 1e-6)).tolist()
    over = [index for index, factor in enumerate(factors) if factor < 1]
    if over:
        torch._foreach_mul_([local[index] for index in over], [factors[index] for index in over])
    return norms.norm()


class _SafeStep:
    """What this package's optimizer wrappers add to mmengine's.

    ``clip_grad=dict(max_norm=3.0, per_tensor=True)`` clips each parameter's gradient by itself
    (:func:`clip_each_grad_`) instead of the norm of all. The norm is logged without waiting for the device. With
    ``skip_nonfinite``, which ``NonFiniteLossHook`` sets, a step whose loss or gradient is not finite on any rank is not
    taken.

    Gradients accumulate within an epoch of ``ResumableEpochLoop``: its last step may be of fewer iterations than
    ``accumulative_counts``, and is their mean. A checkpoint between epochs then lacks no gradient.

    Attributes:
        skip_nonfinite: Judge each step.
        step_skipped: Whether the step that the last backward pass ended was skipped; None: it ended none (gradients
            accumulate).
    """

    def __init__(self, *args, clip_grad: Optional[dict] = None, **kwargs):
        if clip_grad is not None and not isinstance(clip_grad, dict):
            raise ConfigError(f'optim_wrapper.clip_grad is dict(max_norm=...) or None, got {clip_grad!r}.')
        clip_grad = dict(clip_grad or {})
        per_tensor = clip_grad.pop('per_tensor', False)
        if per_tensor and set(clip_grad) != {'max_norm'}:
            raise ConfigError(
                'optim_wrapper.clip_grad: per_tensor=True clips l2 norms and goes with max_norm alone, got '
                f'{", ".join(sorted(clip_grad)) or "nothing"} beside it.'
            )
        if clip_grad.get('max_norm', 1) <= 0:  # 0 means 'off' in the releases of DINO and iBOT
            raise ConfigError(
                f'optim_wrapper.clip_grad.max_norm={clip_grad["max_norm"]:g} would leave nothing of any gradient: set '
                'optim_wrapper.clip_grad=None to clip none.'
            )
        super().__init__(*args, clip_grad=clip_grad or None, **kwargs)
        if per_tensor:
            self.clip_func = clip_each_grad_
        self.skip_nonfinite = False
        self.step_skipped: Optional[bool] = None
        self._bad_loss: Optional[Tensor] = None  # bool [], on the device: a loss since the last step is not finite
        self._epoch: Optional[Tuple[int, int]] = None

    def begin_epoch(self, first: int, stop: int) -> None:
        """Let no step reach beyond the iterations ``first`` to ``stop - 1``."""
        self._epoch = first, stop

    def initialize_count_status(self, model: nn.Module, init_counts: int, max_counts: int) -> None:
        # with epochs, mmengine's warning of lost gradients does not hold
        super().initialize_count_status(model, init_counts if self._epoch is None else 0, max_counts)
        self._inner_count = init_counts

    def should_update(self) -> bool:
        return self._ends_step(self._inner_count) if self._epoch else super().should_update()

    def should_sync(self) -> bool:
        return self._ends_step(self._inner_count + 1) if self._epoch else super().should_sync()

    def scale_loss(self, loss: Tensor) -> Tensor:
        if self._epoch is None:
            return super().scale_loss(loss)
        first, stop = self._epoch
        done = (self._inner_count - first) // self._accumulative_counts * self._accumulative_counts
        return loss / min(self._accumulative_counts, stop - first - done)

    def _ends_step(self, count: int) -> bool:
        first, stop = self._epoch or (0, 0)
        return count == stop or (count - first) % self._accumulative_counts == 0

    def backward(self, loss: Tensor, **kwargs) -> None:
        self.step_skipped = None
        if self.skip_nonfinite:
            bad = ~loss.detach().isfinite()
            self._bad_loss = bad if self._bad_loss is None else self._bad_loss | bad
        super().backward(loss, **kwargs)

    def step(self, **kwargs) -> None:
        self.step_skipped = self.skip_nonfinite and self._is_nonfinite()
        self._bad_loss = None
        if not self.step_skipped:
            super().step(**kwargs)

    def _is_nonfinite(self) -> bool:
        """The verdict of all ranks: the one wait for the device in a step that logs nothing.

        Without it each optimizer, the teacher, the centers and the batch norms would have to take back a step on the
        device, of which only torch's fused optimizers are able. It comes when forward and backward pass are queued, so
        the device idles for the launch of the few kernels that make up the step.
        """
        bad = self._bad_loss
        gradients = [p.grad for p in self._all_parameters() if p.grad is not None]
        if gradients and not hasattr(
            self, 'loss_scaler'
        ):  # the scaler skips infinite gradients itself, and expects some
            bad = bad | ~whole(torch.stack(torch._foreach_norm(gradients))).isfinite().all()
        bad = bad.to(torch.uint8)
        all_reduce(bad, 'max')
        return bool(bad)

    def _clip_grad(self) -> None:
        parameters = [p for p in self._all_parameters() if p.requires_grad and p.grad is not None]
        if parameters:
            norm = self.clip_func(parameters, **self.clip_grad_kwargs)
            if norm is not None:  # clipping by value has none
                defer_scalar(self.message_hub, f'train/{self.grad_name}', whole(norm))

    def _all_parameters(self) -> Iterable[nn.Parameter]:
        return (parameter for group in self.optimizer.param_groups for parameter in group['params'])


def ends_step(wrapper) -> bool:
    """Return whether no gradient waits for the rest of an optimizer step: a checkpoint would not hold it."""
    return not hasattr(wrapper, 'should_update') or wrapper.should_update()


@OPTIM_WRAPPERS.register_module()
class SafeOptimWrapper(_SafeStep, OptimWrapper):
    """mmengine's ``OptimWrapper`` with per-tensor clipping, a norm that is logged without waiting, and steps that can
    be skipped.

    Args:
        **kwargs: See ``mmengine.optim.OptimWrapper``; ``clip_grad`` also takes ``per_tensor``, see
            :func:`clip_each_grad_`.
    """


@OPTIM_WRAPPERS.register_module()
class AutocastOptimWrapper(SafeOptimWrapper):
    """Mixed precision in bfloat16 on any device, without a loss scaler.

    bfloat16 has float32's range, so there is nothing to scale; mmengine's ``AmpOptimWrapper`` scales anyway, which
    waits for the device at every step, and it refuses CPUs.
    """

    @contextmanager
    def optim_context(self, model: nn.Module):
        with super().optim_context(model), autocast(dtype=torch.bfloat16):
            yield


@OPTIM_WRAPPERS.register_module()
class SafeAmpOptimWrapper(_SafeStep, AmpOptimWrapper):
    """mmengine's ``AmpOptimWrapper`` (float16 with a loss scaler, GPUs) with what :class:`SafeOptimWrapper` adds."""


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Return whether weight decay applies: not to biases, norms (1-d), tokens, positions and the norms of prototypes.

    The releases of DINO and iBOT decay tokens and positions, which have more than one dimension; sparing them is this
    project's choice.
    """
    return parameter.ndim > 1 and not name.endswith('.bias') and not any(part in name.split('.') for part in NO_DECAY)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class SelfSupOptimWrapperConstructor:
    """Group the trainable parameters by weight decay, and, if asked for, by their block's learning rate.

    mmengine's default constructor makes one group per parameter as soon as any rule is given, which turns a fused or
    foreach optimizer into a Python loop over hundreds of tensors.

    Args:
        optim_wrapper_cfg: dict(type, optimizer=dict(...), ...); the default type is ``SafeOptimWrapper``.
        paramwise_cfg: None, or dict(layer_decay_rate=r) for weights that are worth keeping: block l (from 1) of L
            learns at lr * r^(L + 1 - l), the embeddings as l = 0, neck and head at lr. The backbone's groups then have
            ``backbone=True``.

    Raises:
        ConfigError: another rule, a rate outside (0, 1], or a backbone without blocks.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: Optional[dict] = None):
        unknown = set(paramwise_cfg or ()) - {'layer_decay_rate'}
        if unknown:
            raise ConfigError(
                'SelfSupOptimWrapperConstructor knows layer_decay_rate in paramwise_cfg, not '
                f'{", ".join(sorted(unknown))}: remove it, or '
                "optim_wrapper.constructor to use mmengine's default one."
            )
        self.rate = (paramwise_cfg or {}).get('layer_decay_rate')
        if self.rate is not None and not 0 < self.rate <= 1:
            raise ConfigError(f'optim_wrapper.paramwise_cfg.layer_decay_rate must be in (0, 1], got {self.rate}.')
        self.cfg = dict(optim_wrapper_cfg)

    def __call__(self, model: nn.Module) -> OptimWrapper:
        cfg = dict(self.cfg)
        optimizer = dict(cfg.pop('optimizer'))
        model = unwrap(model)
        trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        if self.rate is None:
            groups: dict[bool, list] = {True: [], False: []}
            for name, parameter in trained:
                groups[decays(name, parameter)].append(parameter)
            optimizer['params'] = [dict(params=groups[True]), dict(params=groups[False], weight_decay=0.0)]
        else:
            optimizer['params'] = self._ladder(model, trained, optimizer['lr'])
        cfg.setdefault('type', 'SafeOptimWrapper')
        return OPTIM_WRAPPERS.build(cfg, default_args=dict(optimizer=OPTIMIZERS.build(optimizer)))

    def _ladder(self, model: nn.Module, trained: List[Tuple[str, nn.Parameter]], lr: float) -> List[dict]:
        backbone = getattr(model, 'backbone', None)
        if not hasattr(backbone, 'get_layer_depth'):
            raise ConfigError(
                'optim_wrapper.paramwise_cfg.layer_decay_rate needs a backbone of blocks (a ViT), not '
                f'{type(backbone).__name__}.'
            )
        groups: Dict[Tuple[bool, float, bool], list] = {}
        for name, parameter in trained:
            inside = name.startswith('backbone.')
            depth, length = backbone.get_layer_depth(name, 'backbone.') if inside else (0, 1)
            scale = self.rate ** (length - 1 - depth)
            groups.setdefault((inside, scale, decays(name, parameter)), []).append(parameter)
        return [
            dict(params=parameters, lr=lr * scale, backbone=inside, **({} if decayed else dict(weight_decay=0.0)))
            for (inside, scale, decayed), parameters in sorted(groups.items())
        ]
