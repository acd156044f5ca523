"""Checkpoints that are either whole or not there."""

import errno
import glob
import os
import os.path as osp
import re
from contextlib import suppress
from typing import Any, List, Optional, Tuple

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmpretrain.registry import HOOKS

from ...utils.errors import FileWriteError
from ..optim import ends_step
from ..resume import damage

PARTIAL = '.part'
BETWEEN = r'epoch_(\d+)_iter_(\d+)\.pth'  # checkpoints within an epoch
UNFINISHED = (
    r'.+\.pth\.part|\..+_backbone\.(?:pth|md)\.\w+\.tmp'  # checkpoint, export or card, of a process that was killed
)


class AtomicLocalBackend(LocalBackend):
    """mmengine's local files, written under another name, synced, read back, then renamed: a name never stands for half
    a file.

    Where the system allows, it is read from the device and not from memory. On two cores of an AMD EPYC with a virtual
    disk, 512 MiB take 1.5 s to write and 0.3 s to read back.
    """

    def put(self, obj: bytes, filepath) -> None:
        filepath = os.fspath(filepath)
        folder = osp.dirname(osp.abspath(filepath))
        os.makedirs(folder, exist_ok=True)
        partial = filepath + PARTIAL
        try:
            with open(partial, 'wb') as f:
                f.write(obj)
                f.flush()
                os.fsync(f.fileno())
            if not _holds(partial, obj):
                raise OSError(errno.EIO, 'what was read back differs from what was written (is the disk failing?)')
            os.replace(partial, filepath)
        except OSError:
            with suppress(OSError):
                os.remove(partial)
            raise
        handle = os.open(folder, os.O_RDONLY)  # the rename itself lasts once the folder is synced
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _holds(path: str, content: bytes, piece: int = 1 << 20) -> bool:
    with open(path, 'rb') as f:
        if hasattr(os, 'posix_fadvise'):
            os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return all(f.read(piece) == content[start : start + piece] for start in range(0, len(content) + 1, piece))


register_backend('odis_mm.atomic', AtomicLocalBackend, force=True)


class DeferredRemoval:
    """A file backend whose removals wait: mmengine removes the oldest checkpoint BEFORE it writes the next one."""

    def __init__(self, backend):
        self._backend = backend
        self.waiting: List[Tuple[str, str]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        self.waiting.append(('remove', path))

    def rmtree(self, path: str) -> None:
        self.waiting.append(('rmtree', path))

    def settle(self, do: bool) -> None:
        """Carry the waiting removals out, or forget them."""
        waiting, self.waiting = self.waiting, []
        for action, path in waiting if do else ():
            getattr(self._backend, action)(path)


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook``, except that a failed or interrupted write costs nothing that was there before.

    A checkpoint is written atomically; older ones (``max_keep_ckpts``, the former best) are removed only after the
    new one stands and was read back.

    Args:
        count: About how many checkpoints a run writes, at equal distances in whole epochs. Used where ``interval`` is
            None, for recipes that cannot know how many steps an epoch of the user's data has.
        *args, **kwargs: See ``mmengine.hooks.CheckpointHook``. With ``backend_args`` (remote storage) writing is as
            atomic as that backend, and the file's own checksums are compared after it.

    Raises:
        FileWriteError: disk full, no permission, or another content than was written; names the last good checkpoint.
    """

    def __init__(self, *args, count: int = 4, backend_args=None, **kwargs):
        super().__init__(*args, backend_args=backend_args or dict(backend='odis_mm.atomic'), **kwargs)
        self.count = count
        self._verified = set()  # former bests
        self._waits = False  # for the end of an optimizer step

    def before_train(self, runner) -> None:
        super().before_train(runner)
        if self.interval is None:
            self.interval = max(1, runner.max_epochs // self.count)
        self.file_backend = DeferredRemoval(self.file_backend)
        if is_main_process():
            for name in os.listdir(self.out_dir) if osp.isdir(self.out_dir) else ():
                if re.fullmatch(UNFINISHED, name):
                    os.remove(osp.join(self.out_dir, name))

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Write a checkpoint every ``interval`` iterations; where gradients accumulate, at the end of that step."""
        if self.by_epoch:
            return
        self._waits |= self.every_n_train_iters(runner, self.interval, self.save_begin)
        last = self.save_last and self.is_last_train_iter(runner)
        if ends_step(runner.optim_wrapper) and (self._waits or last):
            self._waits = False
            runner.logger.info(f'Saving checkpoint at {runner.iter + 1} iterations')
            self._save_checkpoint(runner)

    def _save_checkpoint_with_step(self, runner, step, meta) -> None:
        self._guard(runner, super()._save_checkpoint_with_step, runner, step, meta)
        if is_main_process():
            for path in glob.glob(osp.join(glob.escape(self.out_dir), 'epoch_*_iter_*.pth')):
                if re.fullmatch(BETWEEN, osp.basename(path)):
                    os.remove(path)  # of an interruption before this one

    def save_now(self, runner, done: int) -> None:
        """Write a checkpoint after ``done`` iterations in all, between two iterations of an epoch or in a validation:
        ``epoch_E_iter_N.pth``, E epochs done.

        It goes when the next regular one stands. Where the regular one of this moment is written, it is written anew.
        """
        self._guard(runner, self._save_now, runner, done)

    def save_epoch(self, runner) -> None:
        """Write this epoch's checkpoint, if ``interval`` did not write it. Called in ``after_train_epoch``."""
        done = runner.epoch + 1
        if not self.by_epoch:  # one of the number of the epoch would stand for that of the iteration
            self._guard(runner, self._save_now, runner, runner.iter, done)
        elif self.last_ckpt is None or osp.basename(self.last_ckpt) != self.filename_tmpl.format(done):
            self._save_checkpoint_with_step(runner, done, dict(epoch=done, iter=runner.iter))

    def _save_now(self, runner, iteration: int, epoch: Optional[int] = None) -> None:
        epoch = runner.epoch if epoch is None else epoch
        name = self.filename_tmpl.format(epoch if self.by_epoch else iteration)
        if iteration > runner.iter or self.last_ckpt is None or osp.basename(self.last_ckpt) != name:
            name = f'epoch_{epoch}_iter_{iteration}.pth'
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir, name, meta=dict(epoch=epoch, iter=iteration), by_epoch=False, backend_args=self.backend_args
        )
        if is_main_process():
            with open(osp.join(runner.work_dir, 'last_checkpoint'), 'w') as f:
                f.write(self.last_ckpt)

    def _save_best_checkpoint(self, runner, metrics) -> None:
        self._guard(runner, super()._save_best_checkpoint, runner, metrics)

    def _guard(self, runner, save, *args) -> None:
        last_good = runner.message_hub.runtime_info.get('last_ckpt')
        if hasattr(runner.train_loop, 'gather_random_states'):  # all ranks are here; only the first one writes
            runner.train_loop.gather_random_states()
        try:
            save(*args)
            self._verify()
        except OSError as error:
            self.file_backend.settle(False)
            raise FileWriteError(
                f'could not write a checkpoint to {self.out_dir}: {error.strerror or error}; make room or fix '
                'the permissions, or the disk, and continue '
                f'with --resume (last good checkpoint: {last_good or "none"}).'
            ) from error
        self.file_backend.settle(True)

    def _verify(self) -> None:
        """Files of other backends than ours, which has done it: their checksums, after they were written."""
        if (self.backend_args or {}).get('backend') == 'odis_mm.atomic' or not is_main_process():
            return
        best = {
            getattr(self, 'best_ckpt_path', None),
            *getattr(self, 'best_ckpt_path_dict', {}).values(),
        } - self._verified
        for path in {self.last_ckpt, *best} - {None}:
            with self.file_backend.get_local_path(path) as local:
                wrong = damage(local)
            if wrong:
                raise OSError(errno.EIO, f'{path} was read back, and {wrong}')
        self._verified |= best
