"""A head without prototypes: embeddings agree, and their coding rate keeps them apart."""

from typing import Dict, Optional

import torch
from mmengine.dist import all_reduce, get_world_size
from mmengine.model import BaseModule
from mmpretrain.registry import MODELS
from torch import Tensor

from ...utils.errors import ConfigError
from ..losses import coding_length, effective_rank, second_moment


@MODELS.register_module()
class EmbeddingHead(BaseModule):
    """Takes the place of ``DistillationHead`` in ODIS and iBOT where data are few: an option of this project, not of
    their papers.

    A prototype loss divides a batch into K balanced groups, which says little where all objects look alike and a batch
    is small. Here the unit vectors themselves are compared, as in SimDINO (arXiv 2502.10385): half their squared
    distance, ``1 - <t, s>``, minus the coding rate of the student's vectors, which takes the place of centering,
    temperatures and prototypes. The neck has ``num_prototypes=0``.

    Args:
        lambda_entropy: Weight of the coding rate against the similarity; it is divided by min(n, d), so that 1 means
            about the same at all batch sizes and widths.
        eps2: eps^2 of :func:`coding_length`.
        lambda_patch_entropy: The same for masked patches; 0: nothing but the tokens' coding rate keeps them apart.

    Raises:
        ConfigError: ``eps2`` is not positive.
    """

    patch_center_of_all = False  # there is no center
    num_prototypes = 0
    loss_hint = (
        'loss: lower is better, below 0 too, as the spread of the embeddings enters with a minus sign; '
        'judge by similarity and effective_rank (1: collapsed)'
    )

    def __init__(
        self, lambda_entropy: float = 1.0, eps2: float = 0.05, lambda_patch_entropy: float = 0.0, init_cfg=None
    ):
        super().__init__(init_cfg)
        if eps2 <= 0:
            raise ConfigError(f'model.head.eps2 must be positive, got {eps2}.')
        self.lambda_entropy, self.eps2, self.lambda_patch_entropy = lambda_entropy, eps2, lambda_patch_entropy
        self._figures: Dict[str, Tensor] = {}

    def token_targets(self, embeddings: Tensor, counted: Optional[Tensor] = None) -> Tensor:
        """Return the teacher's unit vectors [..., d] in float32, each for itself: ``counted`` changes nothing."""
        return embeddings.float()

    def patch_targets(self, embeddings: Tensor, every: None = None) -> Tensor:
        """Return the teacher's unit vectors [M, d] of the masked patches in float32."""
        return embeddings.float()

    def token_loss(self, student: Tensor, targets: Tensor, visible: Optional[Tensor] = None) -> Tensor:
        """Return the mean of ``1 - <t(q), s(v)>`` over the pairs of a teacher view q and another view v, minus the
        coding rate of the student's global views.

        Args:
            student: Unit vectors [V, B, k, d].
            targets: Those of the teacher [G, B, k, d], no gradient.
            visible: bool [B, V], images whose object is in a view; None: all.

        Returns:
            Scalar. Of an object that is not in a view nothing is compared, and nothing enters the coding rate.
        """
        student = student.float()
        num_global, num_views, batch = len(targets), len(student), student.shape[1]
        seen = student.new_ones(num_views, batch) if visible is None else visible.T.float()
        with torch.autocast(student.device.type, enabled=False):  # it would take the products in half precision
            similarity = torch.einsum('gbtd,vbtd->gvb', targets, student) / targets.shape[2]
        other = 1 - torch.eye(num_global, num_views, device=student.device)
        weight = other[:, :, None] * seen[:num_global, None] * seen[None]
        count = weight.sum()
        all_reduce(count)
        count = count.clamp(min=1) / get_world_size()
        # [G, k, m, m]
        moment = second_moment((student[:num_global] * seen[:num_global, :, None, None]).transpose(1, 2))
        rate = (coding_length(moment, student.shape[-1], self.eps2).mean() / moment.shape[-1]).to(student.dtype)
        loss = ((1 - similarity) * weight).sum() / count - self.lambda_entropy * rate
        self._figures = dict(
            similarity=(similarity.detach() * weight).sum() / weight.sum().clamp(min=1),  # of this rank
            effective_rank=effective_rank(moment.detach()).mean(),
        )
        return loss

    def patch_loss(self, student: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        """Return the sum of ``weight x (1 - <t, s>)`` over masked patches, minus their coding rate.

        Args:
            student: Unit vectors [M, d].
            targets: The same, no gradient.
            weight: [M], see :func:`patch_cross_entropy`.
        """
        student = student.float()
        with torch.autocast(student.device.type, enabled=False):
            loss = ((1 - torch.linalg.vecdot(targets, student)) * weight).sum()
        if self.lambda_patch_entropy:
            moment = student.T.double() @ student.double() / max(len(student), 1)  # of this rank's patches
            loss = loss - self.lambda_patch_entropy * (
                coding_length(moment, student.shape[-1], self.eps2) / len(moment)
            ).to(loss.dtype)
        return loss

    def monitor(self, targets: Tensor, counted: Optional[Tensor] = None) -> Dict[str, Tensor]:
        """Return what the log shows: ``similarity`` of the views, ``effective_rank`` of the embeddings (1:
        collapsed)."""
        return self._figures
