"""Head of GTSA: predictor, rotation classifier and the three losses (Kim, Lee; arXiv 2304.08014)."""

from typing import Dict, List, Sequence

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ...structures import ViewBatch, teacher_student_pairs
from ...utils.errors import ConfigError
from ..losses import coding_length, correspondence_similarity, crop_similarity, overlap_weight, second_moment


@MODELS.register_module()
class GTSAHead(BaseModule):
    """loss = lambda_crop L_crop + lambda_correspondence L_correspondence + lambda_rotation L_rotation.

    A pair is a global view of the teacher and another view of the student. Pairs that share no area do not count.

    * L_crop, sensitive to crops and rotations: minus the mean cosine similarity, cell by cell, of the shared rectangle.
    * L_correspondence: minus the mean cosine similarity of the best matches between the cells of the two maps.
    * L_rotation: cross-entropy of the four rotations, from the mean patch token of a student's view.

    A weight of 0 leaves its loss out, and what only that loss needs.

    Args:
        in_channels: Width of the backbone.
        predictor: Config of the student's predictor; its output compares with the neck's.
        crop_cells: Cells per side of the shared rectangle for global and local student views (paper: 10 for maps of
            more than 100 cells, else 4).
        num_matches: Matches that count, for global and local student views (paper: half the cells of the student's
            map).
        rotation_channels: Hidden widths of the rotation classifier (paper, ViT-S).
        lambda_crop: 1 (paper).
        lambda_correspondence: 0.5 (paper).
        lambda_rotation: 0.5 (paper).
        correspondence_epoch: First epoch, counted from 0, with L_correspondence. Paper: after the 10 epochs of warm-up;
            release: once ``10 < epoch``, hence 11.
        lambda_entropy: Weight of this project's option L_entropy (paper: 0): minus the coding rate of the student's
            projected cells of the global views over the images of a batch, cell by cell, so that places alone do not
            raise it. With a predictor alone the maps of a short run with a quick teacher collapse.
        eps2: eps^2 of :func:`coding_length`.

    Raises:
        ConfigError: weights below 0 or all 0, or a neck that would be without any loss until ``correspondence_epoch``.
    """

    def __init__(
        self,
        in_channels: int,
        predictor: dict,
        crop_cells: Sequence[int] = (10, 4),
        num_matches: Sequence[int] = (98, 18),
        rotation_channels: Sequence[int] = (768, 768, 128),
        lambda_crop: float = 1.0,
        lambda_correspondence: float = 0.5,
        lambda_rotation: float = 0.5,
        correspondence_epoch: float = 11,
        lambda_entropy: float = 0.0,
        eps2: float = 0.05,
        init_cfg=None,
    ):
        super().__init__(init_cfg)
        weights = dict(
            lambda_crop=lambda_crop, lambda_correspondence=lambda_correspondence, lambda_rotation=lambda_rotation
        )
        if min(weights.values()) < 0 or not any(weights.values()):
            raise ConfigError(
                f'head: the weights of the losses must be 0 or more, and one of them above 0, got {weights}.'
            )
        if lambda_correspondence and not lambda_crop and correspondence_epoch > 0:
            raise ConfigError(
                f'head.correspondence_epoch={correspondence_epoch} with head.lambda_crop=0 leaves the neck without any '
                'loss until then: set correspondence_epoch=0.'
            )
        self.lambda_crop, self.lambda_correspondence, self.lambda_rotation = weights.values()
        self.lambda_entropy, self.eps2 = lambda_entropy, eps2
        self.crop_cells, self.num_matches = tuple(crop_cells), tuple(num_matches)
        self.correspondence_epoch, self.epoch = correspondence_epoch, 0.0
        self.compares_maps = lambda_crop > 0 or lambda_correspondence > 0
        if self.compares_maps:
            self.predictor = MODELS.build(predictor)
        if lambda_rotation:
            widths, layers = [in_channels, *rotation_channels], []
            for i, (a, b) in enumerate(zip(widths, widths[1:]), 1):
                layers += [nn.Linear(a, b), nn.LayerNorm(b)] + [nn.GELU()] * (i < len(rotation_channels))
            self.rotation = nn.Sequential(*layers, nn.Linear(widths[-1], 4))

    @property
    def loss_hint(self) -> str:
        """See :class:`~odis_mm.models.selfsup.base.TeacherStudent`."""
        if not self.compares_maps:
            return ''
        accuracy = 'rotation_accuracy (25 %: chance) and ' if self.lambda_rotation else ''
        return (
            'loss: lower is better, below 0 too, as the similarity of the views enters with a minus sign; it may rise '
            f'while the features of the teacher spread out: judge by {accuracy}teacher_spread (0: collapsed)'
        )

    def set_epoch(self, epoch: float) -> None:
        """Switch L_correspondence on at its (fractional) epoch."""
        self.epoch = epoch

    def map_losses(self, teacher: Tensor, student: List[Tensor], views: ViewBatch, patch: int) -> Dict[str, Tensor]:
        """Return L_crop and L_correspondence, weighted, and ``teacher_spread``: 0 if all its cells are one direction
        (collapse), 1 if their directions cancel out.

        Args:
            teacher: The neck's maps of the global views [G * B, C, h, w], view-major, no gradient.
            student: Per resolution, the same of the student [V_r * B, C, h_r, w_r], global views first.
            views: Geometry, tensors with leading dimensions [B, V].
            patch: Pixels per cell.
        """
        batch = len(views.rot90)
        maps = [self.predictor(x) for x in student]
        groups = teacher_student_pairs(views, [len(x) // batch for x in maps])
        weight = overlap_weight(torch.cat([pairs.overlap for pairs in groups]))  # [P, B] over all resolutions

        def loss(similarities) -> Tensor:
            return -(torch.cat(list(similarities)) * weight).sum()

        with torch.no_grad():
            losses = dict(teacher_spread=1 - F.normalize(teacher.float(), dim=1).mean((0, 2, 3)).square().sum())
        if self.lambda_entropy:
            cells = F.normalize(_cells(student[0].float(), batch), dim=-1).transpose(1, 2)  # [G, h * w, B, C]
            moment = second_moment(cells)
            rate = coding_length(moment, cells.shape[-1], self.eps2).mean() / moment.shape[-1]
            losses['loss_entropy'] = -self.lambda_entropy * rate.to(cells.dtype)
        if self.lambda_crop:
            losses['loss_crop'] = self.lambda_crop * loss(
                crop_similarity(teacher, x, pairs, size, patch) for x, pairs, size in zip(maps, groups, self.crop_cells)
            )
        if self.lambda_correspondence and self.epoch >= self.correspondence_epoch:
            cells = _cells(teacher, batch)
            losses['loss_correspondence'] = self.lambda_correspondence * loss(
                correspondence_similarity(cells, _cells(x, batch), pairs, self._keep(x, k))
                for x, pairs, k in zip(maps, groups, self.num_matches)
            )
        return losses

    @staticmethod
    def _keep(maps: Tensor, keep: int) -> int:
        cells = maps.shape[-2] * maps.shape[-1]
        if not 1 <= keep <= cells:
            raise ConfigError(
                f'head.num_matches asks for {keep} matches of a map with {cells} cells: the paper takes half of them.'
            )
        return keep

    def rotation_logits(self, pooled: Tensor) -> Tensor:
        """Turn mean patch tokens [..., D] into logits of 0, 1, 2 and 3 counter-clockwise quarter turns, float32 [...,
        4]."""
        return self.rotation(pooled).float()

    def rotation_loss(self, pooled: Tensor, rot90: Tensor) -> Dict[str, Tensor]:
        """Return L_rotation, weighted, and the accuracy in percent (25: chance).

        Args:
            pooled: Mean patch tokens [n, D].
            rot90: int64 [n], quarter turns of the views.
        """
        logits = self.rotation_logits(pooled)
        return dict(
            loss_rotation=self.lambda_rotation * F.cross_entropy(logits, rot90),
            rotation_accuracy=100 * (logits.detach().argmax(-1) == rot90).float().mean(),
        )


def _cells(maps: Tensor, batch: int) -> Tensor:
    """[V * B, C, h, w] as [V, B, h * w, C]."""
    return maps.flatten(2).transpose(1, 2).unflatten(0, (-1, batch))
