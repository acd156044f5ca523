"""Skipping steps whose loss or gradient is not finite, and saving their batches for a closer look."""

import glob
import io
import os.path as osp
from shlex import quote
from typing import Any, Dict, List, NamedTuple, Optional

import torch
from mmengine.dist import all_gather_object
from mmengine.hooks import Hook
from mmpretrain.registry import HOOKS
from torch import Tensor

from ...utils.distributed import unwrap
from ...utils.errors import ConfigError, NonFiniteLossError
from ..loops import random_state
from .checkpoint import AtomicLocalBackend

NAMED = 16  # images in a message; the file names all


class _Batch(NamedTuple):
    """One iteration of the optimizer step under way, kept until the step is judged."""

    iteration: int
    random: dict  # states before it
    data: Any
    terms: Dict[str, Tensor]


@HOOKS.register_module()
class NonFiniteLossHook(Hook):
    """Skip each optimizer step whose loss or gradient is not finite, on all ranks alike, and end a run with too many in
    a row.

    Weights, optimizer state, teacher, centers and the statistics of batch norms stay as they were before the step; with
    gradient accumulation the whole step goes. The log names the term, the iteration and the images, and the batch is
    saved to ``nonfinite_iter_N.pth`` in the work dir, for ``odis-mm replay``: tensors and plain values only.

    ``SafeOptimWrapper`` judges the steps; this hook restores the buffers, reports, and counts. Under the fp16 loss
    scaler only the loss is judged: the scaler expects infinite gradients now and then and skips them itself.

    Args:
        in_a_row: So many skipped steps in a row end the run.
        keep: At most so many batches are saved on each rank, resumed runs included.

    Raises:
        ConfigError: the optimizer wrapper cannot skip steps.
        NonFiniteLossError: after ``in_a_row`` skipped steps; names the last good checkpoint, which is left alone.
    """

    priority = 'VERY_HIGH'  # before anything logs, measures or saves

    def __init__(self, in_a_row: int = 3, keep: int = 3):
        if in_a_row < 1 or keep < 0:
            raise ConfigError(
                f'NonFiniteLossHook: in_a_row must be at least 1 and keep at least 0, got {in_a_row} and {keep}.'
            )
        self.in_a_row, self.keep = in_a_row, keep
        self.row = 0
        self.batches: List[_Batch] = []  # of the optimizer step under way

    def before_train(self, runner) -> None:
        if not hasattr(runner.optim_wrapper, 'skip_nonfinite'):
            raise ConfigError(
                "NonFiniteLossHook skips steps through this package's optimizer wrappers, not "
                f"{type(runner.optim_wrapper).__name__}: set optim_wrapper.type='SafeOptimWrapper', or remove the hook "
                '(default_hooks.nonfinite=None).'
            )
        runner.optim_wrapper.skip_nonfinite = True
        self.buffers = list(unwrap(runner.model).buffers())
        self.former = [buffer.clone() for buffer in self.buffers]

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        if not self.batches:
            _copy(self.former, self.buffers)
        self.random = random_state()

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs: Optional[dict] = None) -> None:
        terms = {name: torch.as_tensor(value).detach() for name, value in (outputs or {}).items()}
        self.batches.append(_Batch(runner.iter, self.random, data_batch, terms))
        skipped = runner.optim_wrapper.step_skipped
        if skipped is None:
            return  # gradients accumulate
        batches, self.batches = self.batches, []
        self.row = self.row + 1 if skipped else 0
        if skipped:
            _copy(self.buffers, self.former)  # the forward pass had fed them
            self._report(runner, batches)

    def _report(self, runner, batches: List[_Batch]) -> None:
        told = [text for text in all_gather_object(self._describe(runner, batches)) if text]
        text = '; '.join(told) or f'the gradient is not finite at iteration {runner.iter + 1}'
        if self.row < self.in_a_row:
            runner.logger.warning(f'{text}. The step is skipped ({self.row} in a row; {self.in_a_row} end the run).')
            return
        last = runner.message_hub.runtime_info.get('last_ckpt')
        raise NonFiniteLossError(
            f'{text}. {self.row} steps in a row were skipped for such reasons; last good checkpoint: {last or "none"}. '
            'Resume from it with --amp bf16 instead of fp16, half the learning rate, or a smaller clip_grad.max_norm.'
        )

    def _describe(self, runner, batches: List[_Batch]) -> str:
        """What was wrong on this rank, where, and the saved file; empty if nothing was."""
        for batch in batches:
            bad = [name for name, value in batch.terms.items() if not value.isfinite().all()]
            if bad:
                break
        else:
            return ''
        names = [name for name in bad if name != 'loss'] or bad
        verb = 'is' if len(names) == 1 else 'are'
        rank = f' (rank {runner.rank})' if runner.world_size > 1 else ''
        images = _images(runner, batch.data)
        shown = ', '.join(map(str, images[:NAMED])) or 'unknown'
        if len(images) > NAMED:
            shown += f' and {len(images) - NAMED} more'
        return (
            f'{", ".join(names)} {verb} not finite at iteration {batch.iteration + 1}{rank}, images {shown}'
            f'{self._save(runner, batch, images)}'
        )

    def _save(self, runner, batch: _Batch, images: list) -> str:
        rank = f'_rank{runner.rank}' if runner.world_size > 1 else ''
        path = osp.join(runner.work_dir, f'nonfinite_iter_{batch.iteration + 1}{rank}.pth')
        if len(glob.glob(osp.join(glob.escape(runner.work_dir), f'nonfinite_iter_*[0-9]{rank}.pth'))) >= self.keep:
            return ''
        content = io.BytesIO()
        torch.save(
            dict(
                iteration=batch.iteration,
                max_iters=runner.max_iters,
                iters_per_epoch=len(runner.train_dataloader),
                random=batch.random,
                images=images,
                terms={name: value.tolist() for name, value in batch.terms.items()},
                batch=plain(batch.data),
            ),
            content,
        )
        try:
            AtomicLocalBackend().put(content.getvalue(), path)
        except OSError as error:
            return f'; the batch could not be saved: {error.strerror or error}'
        return f'; the batch is saved: odis-mm replay CONFIG {quote(str(path))}'


def _copy(to: List[Tensor], of: List[Tensor]) -> None:
    if to:
        torch._foreach_copy_(to, of)


def plain(value: Any) -> Any:
    """Return ``value`` with tensors in host memory, numbers, texts, lists and dicts only; anything else becomes its
    ``repr``."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else repr(value)


def _images(runner, data: Any) -> list:
    """Return the paths of a batch's images if the data set knows them, else their ids, or nothing."""
    samples = data.get('data_samples') if isinstance(data, dict) else None
    if isinstance(samples, dict) and 'img_id' in samples:
        ids = samples['img_id'].tolist()
        dataset = runner.train_dataloader.dataset
        return dataset.paths_of(ids) if hasattr(dataset, 'paths_of') else ids
    return [getattr(sample, 'img_path', '?') for sample in samples] if isinstance(samples, (list, tuple)) else []
