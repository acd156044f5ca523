"""bf16 autocast on any device."""

from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from mmengine.runner.amp import autocast
from mmpretrain.registry import OPTIM_WRAPPERS
from torch import nn


@OPTIM_WRAPPERS.register_module()
class AutocastOptimWrapper(OptimWrapper):
    """Mixed precision in bfloat16, without a loss scaler.

    bfloat16 has float32's range, so there is nothing to scale; mmengine's ``AmpOptimWrapper``
    scales anyway, which waits for the device at every step, and it refuses CPUs.

    Args:
        **kwargs: See ``mmengine.optim.OptimWrapper`` (optimizer, accumulative_counts, clip_grad).
    """

    @contextmanager
    def optim_context(self, model: nn.Module):
        with super().optim_context(model), autocast(dtype=torch.bfloat16):
            yield
