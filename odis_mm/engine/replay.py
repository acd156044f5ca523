"""Reruns a batch that ``NonFiniteLossHook`` saved: ``python -m odis_mm.engine.replay CONFIG FILE [--checkpoint PATH]``."""
import argparse
from typing import Dict, Optional, Sequence, Tuple

import torch
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ..apis import _load_local, load_config
from .loops import set_random_state


def replay(model: nn.Module, saved: dict, amp: Optional[str] = None) -> Tuple[Dict[str, float], str]:
    """One forward pass in training mode, with the random numbers and schedules of the iteration.

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
        with torch.no_grad(), torch.autocast(device, torch.float16 if amp == 'fp16' else torch.bfloat16, enabled=amp is not None):
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


def main(argv: Optional[Sequence[str]] = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog='python -m odis_mm.engine.replay', description='Reruns a batch whose loss was not finite.')
    parser.add_argument('config', help='path, or name of a shipped recipe; the copy in the work dir is best')
    parser.add_argument('file', help='nonfinite_iter_N.pth of the work dir')
    parser.add_argument('--checkpoint', help='weights, best the last before the iteration; without it the model is freshly initialised')
    parser.add_argument('--amp', choices=('bf16', 'fp16'), help='as in the run')
    args = parser.parse_args(argv)
    cfg = load_config(args.config)
    init_default_scope(cfg.get('default_scope', 'mmpretrain'))
    saved = _load_local(args.file, 'cpu')
    model = MODELS.build(cfg.model)
    model.init_weights()
    if args.checkpoint:
        model.load_state_dict(_load_local(args.checkpoint, 'cpu')['state_dict'])
    terms, module = replay(model.to('cuda' if torch.cuda.is_available() else 'cpu'), saved, args.amp)
    print(f'iteration {saved["iteration"] + 1}, images {", ".join(map(str, saved["images"]))}')
    for name, value in terms.items():
        print(f'{name}: {value:g} (in the run: {saved["terms"].get(name, float("nan")):g})')
    print(f'first module with an output that is not finite: {module or "none"}')


if __name__ == '__main__':
    main()
