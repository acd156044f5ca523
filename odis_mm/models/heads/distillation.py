"""Self-distillation head: centered, sharpened teacher distributions and the losses against them."""

from typing import Dict, List, Optional, Tuple, Union

import torch
from mmengine.dist import all_reduce
from mmengine.model import BaseModule
from mmpretrain.registry import MODELS
from torch import Tensor

from ...utils.errors import ConfigError
from ...utils.schedules import linear
from ..losses import pairwise_cross_entropy, patch_cross_entropy

PATCH_CENTERS = ('masked', 'all')
BALANCES = ('center', 'sinkhorn')


@torch.no_grad()
def sinkhorn_knopp(logits: Tensor, temperature: float, iterations: int = 3, counted: Optional[Tensor] = None) -> Tensor:
    """Return probabilities under which all prototypes are used alike over the GLOBAL batch (SwAV, arXiv 2006.09882,
    algorithm 1; DINOv2).

    Args:
        logits: [..., K], the rows of this rank.
        temperature: Sharpness of the start, exp(logits/temperature).
        iterations: Alternations between equal prototypes and rows that sum to 1; SwAV's and DINOv2's 3 leave the
            balance approximate.
        counted: bool [...], rows that take part; None: all.

    Returns:
        float32 [..., K], rows sum to 1, or to 0 where not counted. No row at all gives no row back, on every rank
        alike.
    """
    rows = logits.float().flatten(0, -2)
    if counted is not None:
        rows = rows.masked_fill(~counted.flatten()[:, None], -torch.inf)
    # learned norms bring rows, or prototypes, far below others: the largest logit of each prototype is taken off, which
    # changes no balance, and the first one is made in logarithms, or all of a row could vanish
    top = rows.amax(0) if len(rows) else rows.new_full(rows.shape[1:], -torch.inf)  # [K]
    all_reduce(top, 'max')
    # -inf where no row counts: exp(-inf) is 0
    rows = (rows - top.clamp(min=torch.finfo(top.dtype).min)) / temperature
    used = rows.exp().sum(0)  # [K], at least 1
    all_reduce(used)
    least = torch.finfo(used.dtype).tiny  # for rows that do not count, and prototypes if none does
    weight = (rows - used.clamp(min=least).log()).softmax(1)
    if counted is not None:
        weight = weight.masked_fill(~counted.flatten()[:, None], 0.0)
    for _ in range(iterations - 1):
        used = weight.sum(0)
        all_reduce(used)
        weight = weight / used.clamp(min=least)
        weight = weight / weight.sum(1, keepdim=True).clamp(min=least)
    return weight.view(logits.shape)


class Center(BaseModule):
    """Running mean of the teacher's logits over the GLOBAL batch: c <- m c + (1-m) mean (DINO eq. 4).

    :meth:`observe` only sums; :meth:`step` moves the center, once per optimizer step whatever the number of accumulated
    batches and ranks.
    """

    def __init__(self, num_prototypes: int, momentum: float):
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ConfigError(f'model.head.center_momentum must lie within [0, 1], got {momentum}.')
        self.momentum = momentum
        self.register_buffer('value', torch.zeros(num_prototypes))
        # the last entry counts the rows; not part of a checkpoint: steps and checkpoints coincide
        self.register_buffer('pending', torch.zeros(num_prototypes + 1), persistent=False)

    @torch.no_grad()
    def observe(self, logits: Tensor, counted: Optional[Tensor] = None) -> None:
        """Add logits [..., K], those that are ``counted``, bool [...]; None: all."""
        rows = logits.detach().float().flatten(0, -2)
        if counted is None:
            self.observe_mean(rows.sum(0), len(rows))
        else:
            self.observe_mean(rows.masked_fill(~counted.flatten()[:, None], 0.0).sum(0), counted.sum())

    @torch.no_grad()
    def observe_mean(self, total: Tensor, rows: Union[int, Tensor]) -> None:
        """Add the sum [K] of ``rows`` logits."""
        self.pending[:-1] += total
        self.pending[-1] += rows

    @torch.no_grad()
    def step(self) -> None:
        """Move the center towards the mean of what was observed since the last step, over all ranks."""
        all_reduce(self.pending)
        rows = self.pending[-1]
        moved = torch.lerp(self.pending[:-1] / rows.clamp(min=1), self.value, self.momentum)
        self.value.copy_(torch.where(rows > 0, moved, self.value))  # no masked patch anywhere: the center stays
        self.pending.zero_()


class SoftTargetHead(BaseModule):
    """A head against a teacher's prototype distributions: the two temperatures, of which the teacher's follows a
    schedule.

    Args:
        student_temp: 0.1 (iBOT).
        teacher_temp: A number, or dict(start, end, warmup_epochs): linear, then constant (iBOT: 0.04 -> 0.07 in 30
            epochs).
        balance: What keeps the teacher from one answer for everything: 'center' (DINO, iBOT, ODIS), or 'sinkhorn'
            (SwAV, DINOv2), which balances each batch, accumulated ones each for itself, and also forbids the uniform
            answer that small models drift to.

    Raises:
        ConfigError: an unknown ``balance``, or a temperature that is not positive.
    """

    def __init__(self, student_temp: float, teacher_temp: Union[float, dict], balance: str = 'center', init_cfg=None):
        super().__init__(init_cfg)
        if balance not in BALANCES:
            raise ConfigError(f'head.balance is {balance!r}; use one of {BALANCES}.')
        self.balance = balance
        self.student_temp = student_temp
        self.teacher_temp_cfg = (
            teacher_temp
            if isinstance(teacher_temp, dict)
            else dict(start=teacher_temp, end=teacher_temp, warmup_epochs=0)
        )
        temps = dict(student_temp=student_temp)
        temps.update({f'teacher_temp.{key}': self.teacher_temp_cfg.get(key) for key in ('start', 'end')})
        for name, value in temps.items():
            if not isinstance(value, (int, float)) or value <= 0:
                raise ConfigError(f'model.head.{name} must be a positive number, got {value!r}.')
        warmup = self.teacher_temp_cfg.get('warmup_epochs')
        if not isinstance(warmup, (int, float)) or warmup < 0:
            raise ConfigError(f'model.head.teacher_temp.warmup_epochs must be a number from 0, got {warmup!r}.')
        self.teacher_temp = self.teacher_temp_cfg['start']
        self.watched: Optional[List[Tensor]] = None

    def set_epoch(self, epoch: float) -> None:
        """Set the teacher temperature at a fractional epoch."""
        cfg = self.teacher_temp_cfg
        self.teacher_temp = linear(cfg['start'], cfg['end'], epoch, cfg['warmup_epochs'])

    @torch.no_grad()
    def targets(self, logits: Tensor, center: Center, counted: Optional[Tensor] = None) -> Tensor:
        """Turn teacher logits [..., K] into probabilities, in float32.

        ``counted``, bool [...], tells a balance over the batch which rows the loss uses; None: all.
        """
        probabilities = self._probabilities(logits, center, counted)
        if self.watched is not None:
            self.watched.append(probabilities if counted is None else probabilities[counted])
        return probabilities

    def _probabilities(self, logits: Tensor, center: Center, counted: Optional[Tensor]) -> Tensor:
        """softmax((logits - c)/tau_t), or the balanced ones."""
        if self.balance == 'sinkhorn':
            return sinkhorn_knopp(logits, self.teacher_temp, counted=counted)
        return torch.softmax((logits.float() - center.value) / self.teacher_temp, dim=-1)

    def watch_health(self) -> None:
        """Keep the distributions of the next iteration for :meth:`health`."""
        self.watched = []

    @torch.no_grad()
    def health(self) -> Dict[str, Tensor]:
        """Return figures of the watched iteration's first distributions (the tokens', before any of patches), over all
        ranks.

        Returns:
            ``num_prototypes`` K; ``entropy`` of a distribution, mean; ``prototypes in use``, the perplexity of their
            mean: 1 if all have one prototype, K if all are used alike. Nothing if nothing was watched, or if there was
            no distribution.
        """
        watched, self.watched = self.watched, None
        if not watched:
            return {}
        rows = watched[0].flatten(0, -2)  # [n, K]
        total = torch.cat((rows.sum(0), torch.special.entr(rows).sum()[None], rows.new_tensor([len(rows)])))
        all_reduce(total)
        if total[-1] < 2:
            return {}
        mean = total[:-2] / total[-1]
        return {
            'num_prototypes': mean.new_tensor(len(mean)),
            'entropy': total[-2] / total[-1],
            'prototypes in use': torch.special.entr(mean).sum().exp(),
        }


@MODELS.register_module()
class DistillationHead(SoftTargetHead):
    """Owns the centers, the temperatures and the losses of the DINO family (DINO, iBOT, ODIS).

    Args:
        num_prototypes: K.
        student_temp, teacher_temp, balance: See :class:`SoftTargetHead`.
        center_momentum: 0.9 (iBOT).
        patch_center: What the patch center averages: 'masked', the teacher patches that the loss uses (DINOv2's
            practice: all others need no projection), or 'all' patches (iBOT's definition).

    Raises:
        ConfigError: an unknown ``patch_center``.
    """

    def __init__(
        self,
        num_prototypes: int,
        student_temp: float = 0.1,
        teacher_temp: Union[float, dict] = dict(start=0.04, end=0.07, warmup_epochs=30),
        center_momentum: float = 0.9,
        patch_center: str = 'masked',
        balance: str = 'center',
        init_cfg=None,
    ):
        super().__init__(student_temp, teacher_temp, balance, init_cfg)
        if patch_center not in PATCH_CENTERS:
            raise ConfigError(f'head.patch_center is {patch_center!r}; use one of {PATCH_CENTERS}.')
        self.patch_center_of_all = patch_center == 'all'
        self.num_prototypes = num_prototypes
        self.token_center = Center(num_prototypes, center_momentum)
        self.patch_center = Center(num_prototypes, center_momentum)

    def monitor(self, targets: Tensor, counted: Optional[Tensor] = None) -> Dict[str, Tensor]:
        """Return what the log shows of the tokens' targets [..., K], those that are ``counted``: ``teacher_entropy``,
        ln K for a uniform collapse, 0 for one prototype."""
        entropy = torch.special.entr(targets).sum(-1)
        if counted is None:
            return dict(teacher_entropy=entropy.mean())
        return dict(teacher_entropy=(entropy * counted).sum() / counted.sum().clamp(min=1))

    def step(self) -> None:
        """Move the centers; called after each optimizer step."""
        self.token_center.step()
        self.patch_center.step()

    @torch.no_grad()
    def token_targets(self, logits: Tensor, counted: Optional[Tensor] = None) -> Tensor:
        """Return the teacher's distributions of the leading tokens, from its logits [..., K], which the token center
        then takes up; rows that are not ``counted``, bool [...], stand for nothing and move nothing."""
        targets = self.targets(logits, self.token_center, counted)
        self.token_center.observe(logits, counted)
        return targets

    @torch.no_grad()
    def patch_targets(self, logits: Tensor, every: Optional[Tuple[Tensor, int]] = None) -> Tensor:
        """Return the teacher's distributions of the masked patches, from their logits [M, K].

        Args:
            logits: [M, K], which the patch center takes up if it averages the masked patches.
            every: The sum [K] of the logits of all patches and their number, if it averages those.
        """
        targets = self.targets(logits, self.patch_center)
        if every is None:
            self.patch_center.observe(logits)
        else:
            self.patch_center.observe_mean(*every)
        return targets

    def token_loss(self, student_logits: Tensor, targets: Tensor, visible: Optional[Tensor] = None) -> Tensor:
        """Return the loss of the tokens, see :func:`pairwise_cross_entropy`; student [V, B, k, K], targets [G, B, k,
        K], visible bool [B, V]."""
        return pairwise_cross_entropy(targets, student_logits, self.student_temp, visible)

    def patch_loss(self, student_logits: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        """Return the loss of the patches, see :func:`patch_cross_entropy`; student and targets [M, K], weight [M]."""
        return patch_cross_entropy(targets, student_logits, self.student_temp, weight)
