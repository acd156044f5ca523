"""Rerunning a batch that ``NonFiniteLossHook`` saved."""

from typing import Dict, Optional, Tuple

import torch
from torch import Tensor, nn

from .loops import set_random_state


def replay(model: nn.Module, saved: dict, amp: Optional[str] = None) -> Tuple[Dict[str, float], str]:
    """Run one forward pass in training mode, with the random numbers and schedules of the iteration.

    Args:
        saved: Content of a ``nonfinite_iter_N.pth``.
        amp: 'bf16' or 'fp16': autocast as in training.

    Returns:
        The terms that the model returns, and the name of the first module whose output is not finite ('': none).
    """
    first = []

    def look(name):
        def hook(module, args, output):
            if not first and not all(x.isfinite().all() for x in _tensors(output)):
                first.append(name)

        return hook

    handles = [module.register_forward_hook(look(name)) for name, module in model.named_modules() if name]
    try:
        model.train()
        if hasattr(model, 'set_progress'):
            model.set_progress(saved['iteration'], saved['max_iters'], saved['iters_per_epoch'])
        set_random_state(saved['random'])
        device = next(model.parameters()).device.type
        with (
            torch.no_grad(),
            torch.autocast(device, torch.float16 if amp == 'fp16' else torch.bfloat16, enabled=amp is not None),
        ):
            data = model.data_preprocessor(saved['batch'], True)
            terms = model._run_forward(data, mode='loss')
    finally:
        for handle in handles:
            handle.remove()
    return {name: float(torch.as_tensor(value).mean()) for name, value in terms.items()}, first[0] if first else ''


def _tensors(output) -> list:
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, dict):
        output = output.values()
    elif not isinstance(output, (list, tuple)):
        return []
    return [x for part in output for x in _tensors(part)]
