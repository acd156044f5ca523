"""ALFM's head: the two losses, the center and the temperatures. Our reconstruction: see
:class:`odis_mm.models.ALFM`."""

from typing import Dict, Union

import torch
from mmpretrain.registry import MODELS
from torch import Tensor

from ...utils.errors import ConfigError
from ..losses import coding_length, effective_rank, pairwise_cross_entropy, second_moment, with_context
from .distillation import Center, SoftTargetHead


@MODELS.register_module()
class ALFMHead(SoftTargetHead):
    """GMSR between whole views and CDLP between their cells (our reconstruction of both).

    Args:
        num_prototypes: K.
        num_cells: S; what two views share is compared in S x S cells.
        context_temp: tau_c of the attention among a teacher's cells.
        student_temp, teacher_temp, balance: See :class:`SoftTargetHead`; a balance is over the cells of images whose
            views overlap.
        center_momentum: Of the teacher's mean logits, as in DINO and iBOT.
        lambda_entropy: Weight of the entropies against the similarity; 0: similarity alone, which collapses.
        eps2: eps^2 of :func:`coding_length`.

    Raises:
        ConfigError: a temperature or ``eps2`` that is not positive.
    """

    loss_hint = (
        'loss: lower is better, below 0 too, as similarity and spread of the embeddings enter with a minus sign; '
        'judge by similarity and effective_rank (1: collapsed)'
    )

    def __init__(
        self,
        num_prototypes: int,
        num_cells: int = 7,
        context_temp: float = 0.1,
        student_temp: float = 0.1,
        teacher_temp: Union[float, dict] = dict(start=0.04, end=0.07, warmup_epochs=30),
        center_momentum: float = 0.9,
        lambda_entropy: float = 1.0,
        eps2: float = 0.05,
        balance: str = 'center',
        init_cfg=None,
    ):
        super().__init__(student_temp, teacher_temp, balance, init_cfg)
        for name, value in dict(num_cells=num_cells, context_temp=context_temp, eps2=eps2).items():
            if value <= 0:
                raise ConfigError(f'model.head.{name} must be positive, got {value}.')
        self.num_cells = num_cells
        self.context_temp = context_temp
        self.lambda_entropy = lambda_entropy
        self.eps2 = eps2
        self.num_prototypes = num_prototypes
        self.center = Center(num_prototypes, center_momentum)

    def step(self) -> None:
        """Move the center; called after each optimizer step."""
        self.center.step()

    def gmsr(self, student: Tensor, teacher: Tensor) -> Dict[str, Tensor]:
        """Return L_GMSR ``= - mean <z_1, z_2> - lambda/2 (h(Z_1) + h(Z_2))/min(n, d)``, n images over all ranks.

        The similarity is that of a student's view and the teacher's other one, both ways; the entropies are the
        student's, as a teacher takes no gradient.

        Args:
            student: Unit vectors [2, b, d].
            teacher: The same, no gradient.
        """
        similarity = (student * teacher.flip(0)).sum(-1).mean()
        moment = second_moment(student)  # [2, m, m]
        entropy = (coding_length(moment, student.shape[-1], self.eps2).mean() / moment.shape[-1]).to(student.dtype)
        return dict(
            loss_gmsr=-similarity - self.lambda_entropy * entropy,
            similarity=similarity.detach(),
            effective_rank=effective_rank(moment.detach()).mean(),
        )

    @torch.no_grad()
    def enrich(self, cells: Tensor) -> Tensor:
        """Return the teacher's cells, unit vectors [..., S*S, d], with their context: see :func:`with_context`."""
        return with_context(cells, self.context_temp)

    def cdlp(self, student_logits: Tensor, teacher_logits: Tensor, overlap: Tensor) -> Dict[str, Tensor]:
        """Return L_CDLP = mean_i H(P_i, Q_i), both ways, over the cells of images whose views overlap, all ranks'
        images.

        Args:
            student_logits: C s of the cells [2, B, S*S, K].
            teacher_logits: C u of the same cells with context, no gradient; :meth:`step` moves the center to their
                mean.
            overlap: bool [B].
        """
        targets = self.targets(teacher_logits, self.center, overlap[:, None].expand(teacher_logits.shape[:-1]))
        weight = overlap.float()
        cells = weight.sum() * targets[:, 0, :, 0].numel()
        with torch.autocast(targets.device.type, enabled=False):  # it would take the products in half precision
            self.center.observe_mean(torch.einsum('vbik,b->k', teacher_logits.float(), weight), cells)
            entropy = torch.einsum('vbik,b->', torch.special.entr(targets), weight) / cells.clamp(min=1)
        return dict(
            loss_cdlp=pairwise_cross_entropy(
                targets, student_logits, self.student_temp, overlap[:, None].expand(-1, 2)
            ),
            teacher_entropy=entropy,  # ln K: uniform collapse; 0: one prototype for everything
            overlap=weight.mean(),
        )
