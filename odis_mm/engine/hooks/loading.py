"""What stands between a checkpoint file and a run: does it fit, and does the run follow its own settings."""

import logging
import os.path as osp
from typing import Any, Dict, List, Sequence

from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmpretrain.models import VisionTransformer
from mmpretrain.registry import HOOKS
from torch import Tensor

from ...utils.distributed import unwrap
from ...utils.errors import CheckpointError
from ...utils.words import count
from ..fit import check_fit, check_pretrained, kind_of, state_of
from ..loops import PROGRESS
from ..settings import Change, changes, fast_forward, same_schedule, settings
from .export import backbone_meta

SETTINGS = 'settings'  # in the meta of checkpoints
# settings that decide which images an epoch draws, and in which order
_ORDER = ('train_dataloader.dataset', 'train_dataloader.sampler', 'randomness.seed')
_NOT_ORDER = ('train_dataloader.dataset.pipeline', 'train_dataloader.dataset.seed')


@HOOKS.register_module()
class LoadingHook(Hook):
    """Refuse a file whose tensors are not the model's, and let a resumed run follow the settings that it was started
    with.

    mmengine loads what fits, and restores schedules, learning rates and the seed of the checkpoint whatever the config
    says. Here every setting of the new start holds: the hook lists those that differ from the checkpoint's, renumbers
    the iteration if an epoch has another length now, and puts schedule and optimizer where the new settings have them
    at that iteration.

    Registered by :func:`odis_mm.apis.train` and :func:`odis_mm.apis.test`.

    Args:
        training: The run trains; else it evaluates.
        allow: Shell patterns of tensors that a file need not have (``load_from_allow`` of the config); not for
            ``--resume``.
    """

    priority = 'VERY_LOW'  # after hooks that rename what is loaded (EMA)

    def __init__(self, training: bool = True, allow: Sequence[str] = ()):
        self.training, self.allow = training, allow

    def before_train(self, runner) -> None:
        if runner._load_from is None:
            check_pretrained(runner.model, runner.cfg.get('model') or {})

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        checkpoint['meta'][SETTINGS] = settings(runner.cfg, get_world_size())
        checkpoint['meta']['epoch_length'] = len(runner.train_dataloader)
        model = unwrap(runner.model)
        # of a detector; those of a pretraining tell it by ExportTeacherHook
        if not hasattr(model, 'branch') and isinstance(getattr(model, 'backbone', None), VisionTransformer):
            checkpoint['meta'].update(backbone_meta(model))

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        meta = checkpoint.get('meta')
        if isinstance(meta, dict):
            meta.pop('config', None)  # a text that mmengine would execute, of versions before 0.2
        if runner._resume:
            self._check_resumable(runner, checkpoint)
            _bring_steps_to_host(checkpoint['optimizer'])
            self._drop_resampled(runner, checkpoint)
            self._follow(runner, checkpoint)
            return
        remedy = _REMEDIES['load_from' if self.training else 'test']
        left = check_fit(runner.model, checkpoint, f'{runner._load_from}', remedy, self.allow)
        for line in left:
            runner.logger.warning(f'{runner._load_from}: {line}')

    def _check_resumable(self, runner, checkpoint: dict) -> None:
        name = f'--resume: {runner._load_from}'
        meta = checkpoint.get('meta') or {}
        if 'optimizer' not in checkpoint or not {'epoch', 'iter'} <= set(meta):
            raise CheckpointError(
                f'{name} is {kind_of(checkpoint)}, which holds no optimizer and no iteration, so no run can be '
                f'continued from it; {_REMEDIES["resume"]}'
            )
        check_fit(runner.model, checkpoint, name, _REMEDIES['resume'])
        own, saved = runner.optim_wrapper.optimizer.param_groups, checkpoint['optimizer'].get('param_groups', [])
        if [len(group['params']) for group in own] != [len(group['params']) for group in saved]:
            raise CheckpointError(
                f'{name}: its optimizer has {len(saved)} groups of {sum(len(g["params"]) for g in saved)} parameters, '
                f'this one {len(own)} of {sum(len(g["params"]) for g in own)} (another optim_wrapper.constructor, '
                'paramwise_cfg or frozen part): set these as they were, or start a new run from its weights '
                '(load_from=FILE).'
            )

    def _drop_resampled(self, runner, checkpoint: dict) -> None:
        """Leave out the optimizer's state of parameters that the model resamples as it loads them, of positions at
        another size of the views: torch would write past the ends of the smaller tensors."""
        state, optimizer = state_of(checkpoint), checkpoint['optimizer']
        names = {parameter: name for name, parameter in unwrap(runner.model).named_parameters()}
        dropped = []
        for group, saved in zip(runner.optim_wrapper.optimizer.param_groups, optimizer['param_groups']):
            for parameter, key in zip(group['params'], saved['params']):
                name = names.get(parameter)
                if name in state and state[name].shape != parameter.shape and optimizer['state'].pop(key, None):
                    dropped.append(name)
        if dropped:
            runner.logger.warning(
                f'--resume: {", ".join(dropped)} of another shape in the checkpoint is resampled, and the optimizer '
                'starts without its state of it'
            )

    def _follow(self, runner, checkpoint: dict) -> None:
        meta = checkpoint['meta']
        changed: List[Change] = []
        if SETTINGS in meta:
            changed = changes(meta[SETTINGS], settings(runner.cfg, get_world_size()))
        else:
            runner.logger.warning(
                '--resume: the checkpoint does not hold the settings of its run (odis_mm before 0.2), so changes '
                'cannot be listed; schedule and optimizer follow the settings of this start'
            )
        if changed:
            runner.logger.warning(
                f"--resume: settings that differ from the checkpoint's ({len(changed)}), of which this run follows the "
                'new ones: ' + '; '.join(map(str, changed))
            )
        keys = {change.key for change in changed}
        self._follow_seed(runner, checkpoint, keys)
        renumbered = self._renumber(runner, checkpoint, keys)
        self._follow_optimizer(runner, checkpoint, keys, renumbered)
        self._relocate(runner, checkpoint)

    def _follow_seed(self, runner, checkpoint: dict, keys: set) -> None:
        if 'randomness.seed' in keys and runner.seed is not None:
            checkpoint['meta']['seed'] = runner.seed  # mmengine would go back to the checkpoint's
            if PROGRESS in checkpoint:
                checkpoint[PROGRESS]['random'] = []
            runner.logger.info(f'--resume: random numbers begin anew from seed {runner.seed}')

    def _renumber(self, runner, checkpoint: dict, keys: set) -> bool:
        """Count the iteration in epochs of the new length; return whether it has another number now."""
        loop, meta, length = runner.train_loop, checkpoint['meta'], len(runner.train_dataloader)
        before = meta['iter']
        if hasattr(loop, 'begin_at'):
            progress = checkpoint.get(PROGRESS) or {}
            images, was = progress.get('images', 0), meta.get('epoch_length', length)
            began = progress.get('began', meta['epoch'] * was)
            if images:
                progress['same_order'] = not any(
                    key.startswith(_ORDER) and not key.startswith(_NOT_ORDER) for key in keys
                )
                if images >= len(runner.train_dataloader.dataset):  # of smaller data now
                    meta['epoch'], progress['images'], images, began = meta['epoch'] + 1, 0, 0, began + was
            meta['iter'] = round(began * length / was) + loop.begin_at(images)
        elif not hasattr(loop, 'dataloader_iterator'):
            # mmengine's loop by epochs begins at the start of one, whatever was done of it
            meta['iter'] = meta['epoch'] * length
        if meta['iter'] != before and not hasattr(loop, 'begin_at') and meta.get('epoch_length', length) == length:
            runner.logger.warning(
                f'--resume: {type(loop).__name__} begins at the start of epoch {meta["epoch"] + 1}: the images of the '
                f'{before - meta["iter"]} iterations that were done of it are drawn again'
            )
        elif meta['iter'] != before:
            runner.logger.info(
                f'--resume: an epoch has {length} iterations now{_was(meta, length)}: iteration {before} of the '
                f'checkpoint counts as {meta["iter"]} of {runner.max_iters}'
            )
        # an epoch that max_iters cut short is done
        epochs_done = getattr(loop, 'last', loop) is None and meta['epoch'] >= runner.max_epochs
        if epochs_done or meta['iter'] >= runner.max_iters:
            done = f'{meta["iter"]} of {runner.max_iters} iterations'
            if epochs_done:
                done = f'{meta["epoch"]} of {count(runner.max_epochs, "epoch")}'
            runner.logger.warning(f'--resume: the checkpoint has done {done}: nothing is left to train')
        return meta['iter'] != before

    def _follow_optimizer(self, runner, checkpoint: dict, keys: set, renumbered: bool) -> None:
        wrapper, saved = runner.optim_wrapper, checkpoint['optimizer']
        groups, schedulers = wrapper.optimizer.param_groups, runner.param_schedulers or []
        iteration, states = checkpoint['meta']['iter'], checkpoint.get('param_schedulers', [])
        if not isinstance(schedulers, list) or not isinstance(states, list):
            return  # several optimizers: mmengine's way
        if any(getattr(scheduler, 'need_val_args', False) for scheduler in schedulers):
            return  # a schedule that follows a metric cannot be gone through again
        if {'optim_wrapper.optimizer.type'} & keys:
            saved['state'] = {}
            runner.logger.warning(
                f'--resume: {type(wrapper.optimizer).__name__} starts without the state of the former optimizer'
            )
        was = (saved.get('base_param_settings') or saved['param_groups'][0]).get('lr')
        again = renumbered or not same_schedule(schedulers, states)
        if again:
            fast_forward(schedulers, iteration, len(runner.train_dataloader))
            checkpoint['param_schedulers'] = [scheduler.state_dict() for scheduler in schedulers]
        scheduled = {scheduler.param_name for scheduler in schedulers}
        kept = set() if again else scheduled | {f'initial_{name}' for name in scheduled}
        base = getattr(wrapper, 'base_param_settings', None)  # mmengine's further group, which schedulers move as well
        if base is not None:
            groups, formers = (
                [*groups, base],
                [*saved['param_groups'], saved.setdefault('base_param_settings', {**base})],
            )
        else:
            formers = saved['param_groups']
        for group, former in zip(groups, formers):
            values: Dict[str, Any] = {
                key: former.get(key, value) if key in kept else value for key, value in group.items()
            }
            former_parameters = former['params']
            former.clear()
            former.update(values, params=former_parameters)
        if not hasattr(wrapper, 'loss_scaler'):
            saved.pop('loss_scaler', None)
        if again:
            runner.logger.log(
                logging.INFO,
                f'--resume: the learning rate follows the new settings: {(base or groups[0])["lr"]:.4g} at iteration '
                f'{iteration} of {runner.max_iters} (in the checkpoint: {was:.4g})',
            )

    def _relocate(self, runner, checkpoint: dict) -> None:
        """Let what the checkpoint remembers of its run be of this one: its folder may be a copy, whose files are not
        this run's to remove."""
        hub = checkpoint.get('message_hub', {})
        hub.get('resumed_keys', {}).pop('train/base_lr', None)  # is not logged any more
        info = hub.get('runtime_info', {})
        own = dict(cfg=runner.cfg.pretty_text, seed=runner.seed, experiment_name=runner.experiment_name)
        info.update({key: value for key, value in own.items() if key in info})
        if 'last_ckpt' in info:
            info['last_ckpt'] = osp.abspath(runner._load_from)
        for key in [key for key in info if key.startswith('best_ckpt')]:
            here = osp.join(runner.work_dir, osp.basename(str(info[key])))
            if osp.isfile(here):
                info[key] = here
            else:
                del info[key]


def _bring_steps_to_host(optimizer: dict) -> None:
    """Adam's counters of steps: mmengine loads all onto the GPU, where optimizers that are not fused would wait for the
    counter of each parameter at every step. Fused ones take theirs there themselves."""
    for state in optimizer.get('state', {}).values():
        if isinstance(state.get('step'), Tensor):
            state['step'] = state['step'].cpu()


def _was(meta: dict, length: int) -> str:
    was = meta.get('epoch_length')
    return f', {was} before' if was not in (None, length) else ''


_REMEDIES = dict(
    resume='continue from an epoch_N.pth of this config, or start a new run from its weights (pretraining: --init '
    'FILE; detector: '
    'model.backbone.init_cfg.checkpoint=FILE).',
    load_from='for the backbone of a pretraining use --init FILE, for that of a detector '
    'model.backbone.init_cfg.checkpoint=FILE; tensors that '
    'may stay as they are initialised are named by --cfg-options "load_from_allow=[\'roi_head.*\',]".',
    test='test a checkpoint that was trained by this config (with its number of classes).',
)
