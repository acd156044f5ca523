"""Instruments of the benchmark: a clock that adds no waiting, a step in pieces, and the machine's own limit."""

import copy
import math
import statistics
import time
from typing import Dict, Optional

import torch
from mmengine.config import Config
from mmpretrain.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves  # torch gives it no public name

from ..models.backbones.attention import attend
from ..models.linear import linear, plain_linears
from ..models.selfsup.base import TeacherStudent
from .cost import total_loss
from .textbook_ibot import TextbookIBOT

PARTS = (
    'teacher',
    'student',
    'heads',
    'loss',
    'backward, heads',
    'backward, loss',
    'backward, student',
    'optimizer + EMA',
)


class Clock:
    """Points in time: of the GPU's own queue, so that nothing waits within a step, else of the host."""

    def __init__(self, device: torch.device):
        self.cuda = device.type == 'cuda'

    def mark(self):
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def finish(self) -> None:
        """Waits until all marks have been passed."""
        if self.cuda:
            torch.cuda.synchronize()

    def between(self, start, end) -> float:
        """Seconds; after :meth:`finish`."""
        return start.elapsed_time(end) / 1000 if self.cuda else end - start


class Step:
    """One training step as the config has it, in pieces that can be timed.

    Args:
        model: A teacher-student model on its device.
        cfg: Its config, for ``optim_wrapper``.
        data: What the model's preprocessor returned.
        bf16: Autocast.
        textbook: Take :class:`TextbookIBOT`, with an unfused AdamW of its own, in place of the model's step.
    """

    def __init__(self, model: TeacherStudent, cfg: Config, data: dict, bf16: bool = False, textbook: bool = False):
        wrapper = copy.deepcopy(dict(cfg.optim_wrapper))
        wrapper.update(type='SafeOptimWrapper', accumulative_counts=1)
        if textbook:
            wrapper['optimizer'] = {**wrapper['optimizer'], 'fused': False, 'foreach': False}
        constructor = OPTIM_WRAPPER_CONSTRUCTORS.get(wrapper.pop('constructor', 'DefaultOptimWrapperConstructor'))
        self.optim = constructor(wrapper, wrapper.pop('paramwise_cfg', None))(model)
        self.model, self.data, self.bf16, self.textbook = model, data, bf16, textbook
        self.form = TextbookIBOT(model) if textbook else model
        self.clock = Clock(next(model.parameters()).device)

    def __call__(self, data: Optional[dict] = None) -> Dict[str, float]:
        """Does a step on ``data``; seconds of its :data:`PARTS` (the textbook's: of the whole alone) and ``step``."""
        data, clock = data or self.data, self.clock
        split = _Split(self.model, clock)
        with plain_linears() if self.textbook else split:
            start = clock.mark()
            with torch.autocast(self.data['inputs'][0].device.type, torch.bfloat16, enabled=self.bf16):
                loss = total_loss(self.form.compute_losses(data['inputs'], data['data_samples']))
            forward = clock.mark()
            loss.backward()
            backward = clock.mark()
            self.optim.step()
            self.optim.zero_grad()
            self.form.after_optimizer_step()
            end = clock.mark()
        clock.finish()
        self.loss = loss.detach()
        if self.textbook:
            return dict(step=clock.between(start, end))
        spent = {name: sum(clock.between(*span) for span in spans) for name, spans in split.spans.items()}
        turn = split.features_reached or forward
        before = spent['teacher'] + spent['student'] + spent['heads']
        return dict(
            **spent,
            loss=clock.between(start, forward) - before,
            **{
                'backward, loss': clock.between(forward, turn) - spent['backward, heads'],
                'backward, student': clock.between(turn, backward),
            },
            **{'optimizer + EMA': clock.between(backward, end)},
            step=clock.between(start, end),
        )


class _Split:
    """Spans of teacher, student and heads in a forward pass, of the heads in a backward pass, and the moment at which
    that reaches the backbone."""

    def __init__(self, model: TeacherStudent, clock: Clock):
        self.clock, self.features_reached = clock, None
        self.spans: Dict[str, list] = {'teacher': [], 'student': [], 'heads': [], 'backward, heads': []}
        # necks are entered at their layers, too, not only by forward
        trained, heads = (
            [m for part in parts for m in part.modules() if next(m.parameters(), None) is not None]
            for parts in ((model.neck, model.head), (model.neck, model.teacher['neck'], model.head))
        )
        self.groups = dict(teacher=[model.teacher['backbone']], student=[model.backbone], heads=heads)
        self.trained, self.backbone, self.handles, self._depth, self._start = trained, model.backbone, [], 0, None

    def __enter__(self):
        for name, modules in self.groups.items():
            for module in dict.fromkeys(modules):
                self.handles += [
                    module.register_forward_pre_hook(self._enter),
                    module.register_forward_hook(lambda *_, name=name: self._leave(name)),
                ]
        for module in dict.fromkeys(self.trained):
            self.handles += [
                module.register_full_backward_pre_hook(self._enter),
                module.register_full_backward_hook(lambda *_: self._leave('backward, heads')),
            ]
        self.handles.append(self.backbone.register_forward_hook(self._watch))
        return self

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()

    def _enter(self, *_) -> None:
        if not self._depth:
            self._start = self.clock.mark()
        self._depth += 1

    def _leave(self, name: str) -> None:
        self._depth -= 1
        if not self._depth:
            self.spans[name].append((self._start, self.clock.mark()))

    def _watch(self, module: nn.Module, args, outputs) -> None:
        for out in tree_leaves(outputs):
            if out.requires_grad:
                out.register_hook(self._reached)

    def _reached(self, grad: Tensor) -> None:
        if self.features_reached is None:
            self.features_reached = self.clock.mark()


def matrix_peak(device: torch.device, dtype: torch.dtype, size: Optional[int] = None, tries: int = 3) -> float:
    """FLOP/s of a product of two square matrices, the best of some tries: what a step can at most reach."""
    size = size or (8192 if device.type == 'cuda' else 2048)
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    clock, best = Clock(device), math.inf
    for _ in range(tries):
        start = clock.mark()
        linear(a, b)
        end = clock.mark()
        clock.finish()
        best = min(best, clock.between(start, end))
    return 2 * size**3 / best


def mask_seconds(model: TeacherStudent, data: dict, bf16: bool, repeats: int) -> float:
    """What the object masks add to the attention of a step, timed apart: in whole steps it is lost in the noise of a
    shared machine.

    Of all blocks of teacher (forward) and student (forward and backward pass), the making of the masks included.
    """
    backbone, views, masks = model.backbone, data['inputs'][0], data['data_samples']['object_mask'][0]
    attn, device, dtype = backbone.layers[0].attn, views.device, torch.bfloat16 if bf16 else torch.float32
    with torch.no_grad():
        tokens, grid = backbone.embed(views)
    qkv = torch.randn(
        *tokens.shape[:2], 3, attn.num_heads, attn.head_dims, device=device, dtype=dtype, requires_grad=True
    )
    clock, spent = Clock(device), {name: [] for name in ('masks', 'masked', 'plain')}

    def passes(sequences, mask: Optional[Tensor]) -> None:
        def forward() -> Tensor:
            q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
            return attend(q, k, v, mask, sequences.objects, sequences.form)

        with torch.no_grad():
            forward()
        out = forward()
        out.backward(out.detach())
        qkv.grad = None

    for repeat in range(repeats + 2):  # two do not count
        marks = [clock.mark()]
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            sequences = backbone.sequences([(tokens, grid)], [masks])
        mask = sequences.masks[0]
        marks.append(clock.mark())
        order = (mask, None) if repeat % 2 else (None, mask)
        for which in (*order, *order[::-1]):
            passes(sequences, which)
            marks.append(clock.mark())
        clock.finish()
        spans = [clock.between(start, end) for start, end in zip(marks, marks[1:])]
        if repeat > 1:
            outer, inner = spans[1] + spans[4], spans[2] + spans[3]
            spent['masks'].append(spans[0])
            spent['masked'].append((outer if repeat % 2 else inner) / 2)
            spent['plain'].append((inner if repeat % 2 else outer) / 2)
    more = statistics.median(a - b for a, b in zip(spent['masked'], spent['plain']))
    return backbone.num_layers * more + 2 * statistics.median(spent['masks'])
