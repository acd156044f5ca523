"""Drives a teacher-student model: schedules before each iteration, teacher and centers after each optimizer step."""

from typing import Optional

from mmengine.hooks import Hook
from mmpretrain.registry import HOOKS

from ...utils.distributed import unwrap
from ...utils.errors import ConfigError
from ...utils.schedules import cosine


@HOOKS.register_module()
class SelfSupScheduleHook(Hook):
    """Per-iteration schedules, prototype freeze, and the call that moves the teacher.

    The teacher and the centers follow torch's own optimizer-step hook and not the iteration: with gradient accumulation
    they move once per optimizer step, and not at all in a step which the fp16 loss scaler skips.

    Args:
        weight_decay_end: Weight decay follows a cosine from the optimizer's value to this one (iBOT: 0.04 -> 0.4), in
            the groups that have any; None: constant.
        freeze_prototypes_epochs: So many first epochs give the prototype layer no gradient (DINO, iBOT: 1).
        warm_heads: For this share of the run neck and head learn on a backbone that stays as it is; over another such
            share the backbone's rate then rises from 0 to its own. For weights that are worth keeping: the gradients of
            an untrained head would destroy them. Needs ``optim_wrapper.paramwise_cfg.layer_decay_rate``, which keeps
            the backbone's parameters apart.

    Raises:
        ConfigError: a share of warming outside [0, 0.5), or no layer-wise rates for it.
    """

    def __init__(
        self, weight_decay_end: Optional[float] = None, freeze_prototypes_epochs: float = 0, warm_heads: float = 0.0
    ):
        if not 0 <= warm_heads < 0.5:
            raise ConfigError(f'SelfSupScheduleHook: warm_heads is a share of the run in [0, 0.5), got {warm_heads}.')
        self.warm_heads = warm_heads
        self.weight_decay_end = weight_decay_end
        self.freeze_prototypes_epochs = freeze_prototypes_epochs
        self._handles, self._backbone = [], []

    def before_train(self, runner) -> None:
        model = unwrap(runner.model)
        if not hasattr(model, 'set_progress'):
            raise ConfigError(
                f'SelfSupScheduleHook drives TeacherStudent models, not {type(model).__name__}: '
                'remove the hook (default_hooks.schedule=None).'
            )
        optimizer = runner.optim_wrapper.optimizer
        iters_per_epoch = len(runner.train_dataloader)
        freeze_until = self.freeze_prototypes_epochs * iters_per_epoch
        self._backbone = backbone = [group for group in optimizer.param_groups if group.get('backbone')]
        if self.warm_heads and not backbone:
            raise ConfigError(
                'SelfSupScheduleHook: warm_heads needs the backbone in parameter groups of its own: set '
                'optim_wrapper.paramwise_cfg.layer_decay_rate (1.0 for one rate).'
            )
        rates = {}

        def before_step(*_):
            share = self.backbone_share(runner.iter, runner.max_iters)
            if share < 1:
                for number, group in enumerate(backbone):
                    rates[number] = group['lr']
                    # for this step only: schedulers go on from the rate that they set
                    group['lr'] = share * group['lr']
            if runner.iter < freeze_until:
                # after clipping, which is no matter where each tensor is clipped by itself, as the recipes have it
                for parameter in model.prototype_parameters():
                    parameter.grad = None

        def after_step(*_):
            for number in list(rates):
                backbone[number]['lr'] = rates.pop(number)
            # a fused optimizer is called by the fp16 loss scaler at every step, and skips those with infinite gradients
            # itself
            skipped = getattr(optimizer, 'found_inf', None)
            if skipped is None or not skipped:
                model.after_optimizer_step()

        self._handles = [optimizer.register_step_pre_hook(before_step), optimizer.register_step_post_hook(after_step)]
        self._decayed = [
            (g, g.setdefault('initial_weight_decay', g['weight_decay']))
            for g in optimizer.param_groups
            if g.get('initial_weight_decay', g['weight_decay']) > 0
        ]

    def backbone_share(self, iteration: int, max_iters: int) -> float:
        """Return what of its learning rate the backbone gets: 0 while the heads are warmed, then rising to 1 over as
        many iterations."""
        warm = int(self.warm_heads * max_iters)
        return min(max((iteration - warm + 1) / warm, 0.0), 1.0) if iteration >= warm > 0 else float(warm <= 0)

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        unwrap(runner.model).set_progress(runner.iter, runner.max_iters, len(runner.train_dataloader))
        if self._backbone:
            rate = max(group['lr'] for group in self._backbone) * self.backbone_share(runner.iter, runner.max_iters)
            runner.message_hub.update_scalar('train/backbone_lr', rate)
        # mmpretrain's CosineAnnealingWeightDecay has the same values, but each from the last one and with the length
        # that a checkpoint holds: a run that is resumed with another length would keep the old one
        if self.weight_decay_end is not None:
            for group, start in self._decayed:
                group['weight_decay'] = cosine(start, self.weight_decay_end, runner.iter, runner.max_iters)

    def after_train(self, runner) -> None:
        for handle in self._handles:
            handle.remove()
