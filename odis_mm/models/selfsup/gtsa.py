"""GTSA: geometric-transformation-sensitive architecture (Kim, Lee; arXiv 2304.08014, 2023)."""

from typing import Dict, List

import torch
from mmpretrain.registry import MODELS
from torch import Tensor

from ...structures import ViewBatch
from ...utils.errors import ConfigError
from ...utils.schedules import cosine
from .base import TeacherStudent


@MODELS.register_module()
class GTSA(TeacherStudent):
    """Student maps that, unlike an invariant method's, follow the crop and the rotation of their view (see
    ``GTSAHead``).

    Patch tokens only: the class token stays in the backbone as a key of the attention and is dropped from its output.
    There is no centering; the student's predictor alone keeps the maps from collapsing.

    Args:
        **kwargs: See :class:`TeacherStudent`; the backbone an ``ObjectViT``, the neck a ``ConvNeck``, the head a
            ``GTSAHead``.

    Raises:
        ConfigError: a predictor of other widths than the neck's result.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.patch_size = self.backbone.patch_embed.projection.stride[0]
        if not self.head.compares_maps:  # rotation alone: nothing would train it, and DDP would wait for its gradients
            self.neck.requires_grad_(False)
            return
        made = getattr(self.neck, 'out_channels', None)  # a neck of one's own may not tell
        for side in ('in_channels', 'out_channels'):
            found = getattr(self.head.predictor, side, made)
            if made not in (None, found):
                raise ConfigError(
                    f'model.neck.out_channels={made}, but model.head.predictor.{side}={found}: set both to one number.'
                )

    def set_progress(self, iteration: int, max_iters: int, iters_per_epoch: int) -> None:
        """Do as the base, but for the teacher's momentum.

        GTSA updates the teacher at the start of an iteration, from the student as the last step left it and with the
        momentum of that iteration. What the forward pass sees is the same if it moves right after the optimizer step
        with the momentum of the iteration to come; so nothing is pending when a checkpoint is written or gradients
        accumulate.
        """
        super().set_progress(iteration, max_iters, iters_per_epoch)
        self.momentum = cosine(self.momentum_cfg['start'], self.momentum_cfg['end'], iteration + 1, max_iters)

    def extract_feat(self, inputs: Tensor) -> Tensor:
        """Return the teacher's patch map [B, D, rows, columns] of images [B, 3, H, W], normalised."""
        backbone = self.teacher['backbone']
        return backbone.to_map(backbone(inputs)[-1], inputs.shape[-2:])

    def predict_rotation(self, inputs: Tensor) -> Tensor:
        """Return the student's logits [B, 4] of 0 to 3 counter-clockwise quarter turns of images [B, 3, H, W],
        normalised."""
        return self.head.rotation_logits(self._mean_patch(self.backbone(inputs)[-1]))

    def compute_losses(self, inputs: List[Tensor], data_samples: dict) -> Dict[str, Tensor]:
        """Return the losses of V views of B images: G global ones at one resolution, the others after them.

        Args:
            inputs: Normalised views per resolution, [V_r*B, 3, H, W], global views first, view-major.
            data_samples: crop [B, V, 4], view_size [B, V, 2], flip [B, V], rot90 [B, V].
        """
        views = ViewBatch(*(data_samples[key] for key in ('crop', 'view_size', 'flip', 'rot90')))
        tokens = [self.backbone(x)[-1] for x in inputs]  # [V_r*B, T_r, D]
        losses = {}
        if self.head.compares_maps:
            student = [self.neck(self.backbone.to_map(t, x.shape[-2:])) for t, x in zip(tokens, inputs)]
            with torch.no_grad():
                teacher = self.teacher['neck'](self.extract_feat(inputs[0]))  # [G*B, C, h, w]
            losses = self.head.map_losses(teacher, student, views, self.patch_size)
        if self.head.lambda_rotation:
            pooled = torch.cat([self._mean_patch(t) for t in tokens])  # [V*B, D]
            losses.update(self.head.rotation_loss(pooled, views.rot90.T.flatten()))
        return losses

    def _mean_patch(self, tokens: Tensor) -> Tensor:
        """[B, T, D] to [B, D]: the mean of the patches."""
        return tokens[:, self.backbone.num_leading_tokens :].mean(1)
