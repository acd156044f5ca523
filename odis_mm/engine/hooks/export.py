"""Writes the teacher's backbone, and a card about it, beside every checkpoint."""

import os
import os.path as osp
from typing import Optional

from mmengine.config import Config
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import Hook
from mmpretrain.models import VisionTransformer
from mmpretrain.registry import HOOKS

from ...transfer import save_backbone
from ...utils.distributed import unwrap
from ...utils.nested import dicts
from ...version import __version__
from ..card import facts, whole_folder, write_card


@HOOKS.register_module()
class ExportTeacherHook(Hook):
    """``epoch_10.pth`` gets a ``epoch_10_backbone.pth`` that detectors load: tensors only, under ``backbone.*``.

    Beside it lies ``epoch_10_backbone.md``, a card: method, config, data, length, what was measured so far, versions,
    command.

    It follows what the checkpoint hook reports as written. When that hook removes an old checkpoint of this run
    (``max_keep_ckpts``), also one from before the run was resumed, the export and the card beside it go too.
    """

    priority = 'LOWEST'  # after the checkpoint hook (VERY_LOW)

    def __init__(self):
        self._exports = {}
        self._seen: Optional[str] = None

    def before_train(self, runner) -> None:
        # a resumed run knows the checkpoint it comes from: one step later its export would be of other weights
        checkpoint = runner.message_hub.runtime_info.get('last_ckpt')
        path = f'{osp.splitext(checkpoint)[0]}_backbone.pth' if checkpoint else ''
        there = [osp.isfile(path)]
        broadcast_object_list(there)  # the first rank may write it before another looks
        if there[0]:
            self._exports[checkpoint], self._seen = path, checkpoint
        folder = osp.dirname(checkpoint) if checkpoint else ''
        if folder and osp.abspath(folder) == osp.abspath(runner.work_dir):  # another folder's files are not this run's
            for name in os.listdir(folder):
                own = osp.join(folder, name.removesuffix('_backbone.pth') + '.pth')
                if name.endswith('_backbone.pth') and osp.isfile(own):
                    self._exports[own] = osp.join(folder, name)
        self._export(runner)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Have the training checkpoint tell the same of its backbone."""
        checkpoint.setdefault('meta', {}).update(backbone_meta(unwrap(runner.model)))

    def after_train_epoch(self, runner) -> None:
        self._export(runner)

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        self._export(runner, runner.iter + 1)  # the counter moves after the hooks

    def after_train(self, runner) -> None:
        self._export(runner)

    def _export(self, runner, iteration: Optional[int] = None) -> None:
        checkpoint = runner.message_hub.runtime_info.get('last_ckpt')
        if not checkpoint or checkpoint == self._seen:
            return
        self._seen, model = checkpoint, unwrap(runner.model)
        state = model.teacher_backbone_state()  # of which each rank may have a part
        if not is_main_process() or not osp.isfile(checkpoint):
            return
        path = f'{osp.splitext(checkpoint)[0]}_backbone.pth'
        iteration = runner.iter if iteration is None else iteration
        meta = dict(
            method=type(model).__name__,
            epoch=iteration // len(runner.train_dataloader),
            iteration=iteration,
            odis_mm=__version__,
            config=osp.basename(runner.cfg.filename) if getattr(runner.cfg, 'filename', None) else '',
        )
        meta.update(backbone_meta(model), **reading_meta(runner.cfg))
        folder = whole_folder(runner.cfg)
        if folder:
            meta['every_image_of'] = folder
        save_backbone(path, state, meta)
        write_card(_card(path), osp.basename(path), facts(runner, model, state, iteration))
        self._exports[checkpoint] = path
        removed = []
        for old in [c for c in self._exports if not osp.isfile(c)]:
            exported = self._exports.pop(old)
            for file in (exported, _card(exported)):
                if osp.isfile(file):
                    os.remove(file)
            removed.append(osp.basename(exported))
        gone = f'; {", ".join(removed)} removed with its checkpoint (max_keep_ckpts)' if removed else ''
        runner.logger.info(f'teacher backbone exported to {path}{gone}')


def backbone_meta(model) -> dict:
    """Return what the tensors of a model's backbone do not tell: heads, patches, eps of the norms, and the
    normalisation of its images."""
    backbone = model.branch('teacher') if hasattr(model, 'branch') else model.backbone
    preprocessor = model.data_preprocessor
    meta = {}
    if hasattr(backbone, 'settings'):
        meta.update(backbone.settings())
    elif isinstance(backbone, VisionTransformer):
        meta.update(num_heads=backbone.layers[0].attn.num_heads, norm_eps=float(backbone.layers[0].ln1.eps))
    # of a detector without conversion of channels they are in the order of its files, blue first
    if hasattr(preprocessor, 'mean') and getattr(preprocessor, '_channel_conversion', True):
        meta.update({key: [float(value) for value in getattr(preprocessor, key).flatten()] for key in ('mean', 'std')})
    return meta


def reading_meta(cfg: Config) -> dict:
    """How images that are no usual photographs were read, for detectors that start from the export."""
    for step in dicts(cfg.get('train_dataloader')):
        if step.get('type') == 'LoadObjectImage':
            told = {key: step[key] for key in ('channels', 'window', 'percentiles') if step.get(key)}
            return dict(reading=told) if told else {}
    return {}


def _card(path: str) -> str:
    return f'{osp.splitext(path)[0]}.md'
