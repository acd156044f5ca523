"""ODIS: object-level self-distillation (Hizli, Yildiz, Marttinen; arXiv 2506.05409, 2025). iBOT is its special case."""

from typing import Dict, List, Optional, Tuple

import torch
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ...utils.errors import ConfigError
from .base import TeacherStudent


@MODELS.register_module()
class ODIS(TeacherStudent):
    """loss = L_obj + lambda_patch L_patch + lambda_img L_img.

    L_obj compares the [OBJ] tokens of a teacher's global view and another view of the student, where [OBJ] sees one object only;
    L_patch compares masked patches of the student with the same, unmasked, of the teacher (iBOT); L_img is iBOT's and
    DINO's loss on an unmasked [CLS]. With ``masked_attention=False`` and plain cropping it is iBOT (arXiv 2111.07832).

    Args:
        lambda_patch: Weight of L_patch (paper: 1). 0 leaves out the mask token and the patch branch.
        lambda_img: Weight of L_img (paper: 0); needs ``backbone.cls_beside_object=True``.
        packed: Run the student on all resolutions at once, see ``ObjectViT.forward``: for GPUs that wait for small kernels; same losses.
        masked_attention: Let [OBJ] see the object's patches only, in teacher and student; False: the whole view.
        **kwargs: See :class:`TeacherStudent`; the backbone an ``ObjectViT``, the head a ``DistillationHead``.
    """

    def __init__(
        self,
        *args,
        lambda_patch: float = 1.0,
        lambda_img: float = 0.0,
        masked_attention: bool = True,
        packed: bool = False,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        if lambda_img and not self.backbone.cls_beside_object:
            raise ConfigError(
                'model.lambda_img needs a [CLS] token beside [OBJ]: set model.backbone.cls_beside_object=True.'
            )
        self.lambda_patch = lambda_patch
        self.lambda_img = lambda_img
        self.masked_attention = masked_attention
        self.packed = packed
        if lambda_patch:  # outside the backbone: an exported backbone has no use for it
            self.mask_token = nn.Parameter(torch.zeros(self.backbone.embed_dims))

    prototype_loss = 'loss_obj'

    def image_features(self, output: Tuple[Tensor, ...]) -> Tensor:
        """Return the mean of the k [OBJ] tokens, float ``[n, D]``."""
        tokens = output[-1] if output[-1].ndim == 3 else output[-2]  # the leading ones apart
        return tokens[:, self.backbone.object_slice].mean(1)

    def extract_feat(self, inputs: Tensor, object_mask: Optional[Tensor] = None) -> Tuple[Tensor, Tensor]:
        """The teacher's features.

        Args:
            inputs: [B, 3, H, W], normalised.
            object_mask: bool [B, N], the patches of the object in question; None: the whole image.

        Returns:
            The mean of the k [OBJ] tokens, ``[B, D]``, and the patch tokens, ``[B, N, D]``.
        """
        tokens = self.teacher['backbone'](inputs, object_mask)[-1]
        return tokens[:, self.backbone.object_slice].mean(1), tokens[:, self.backbone.num_leading_tokens :]

    def compute_losses(self, inputs: List[Tensor], data_samples: dict) -> Dict[str, Tensor]:
        """V views of B images: G global ones at one resolution, the others after them.

        Args:
            inputs: Normalised views per resolution, [V_r*B, 3, H, W], global views first, view-major.
            data_samples: object_mask (list over resolutions), object_visible [B, V], mim_mask [G*B, N], mim_index [M], mim_weight [M].
        """
        visible = data_samples['object_visible'] if self.masked_attention else None  # [B, V]
        masks = data_samples['object_mask'] if self.masked_attention else [None]
        batch = len(data_samples['object_visible'])
        # of the last block only the leading tokens and the masked patches are read
        none = torch.zeros(0, dtype=torch.int64, device=inputs[0].device)
        if self.lambda_patch:
            replace, masked = (data_samples['mim_mask'], self.mask_token), data_samples['mim_index']
        else:
            replace, masked = None, none

        # the teacher comes first: its logits are gone before the student's are there
        targets, patch_targets = self._targets(inputs[0], masks[0], masked, batch)
        student = self._student(inputs, masks[0], replace, masked, none)
        leading = torch.cat([out[-2] for out in student])  # [V*B, t, D]
        logits, patch_logits = self._project(self.neck, leading, student[0][-1] if self.lambda_patch else None)
        logits = logits.unflatten(0, (-1, batch))  # [V, B, t, K]

        objects = self.backbone.object_slice
        losses = dict(loss_obj=self.head.token_loss(logits[:, :, objects], targets[:, :, objects], visible))
        if self.lambda_img:
            losses['loss_img'] = self.lambda_img * self.head.token_loss(logits[:, :, :1], targets[:, :, :1])
        if self.lambda_patch:
            patch_loss = self.head.patch_loss(patch_logits, patch_targets, data_samples['mim_weight'])
            losses['loss_patch'] = self.lambda_patch * patch_loss
        shown = data_samples['object_visible'][:, : len(inputs[0]) // batch]  # [B, G]
        losses['visible_share'] = shown.all(1).float().mean()  # of images, in all global views
        # ln K: uniform collapse; 0: one prototype for everything
        losses['teacher_entropy'] = torch.special.entr(targets).sum(-1).mean()
        return losses

    def _student(
        self,
        inputs: List[Tensor],
        mask: Optional[Tensor],
        replace: Optional[Tuple[Tensor, Tensor]],
        masked: Tensor,
        none: Tensor,
    ) -> List[Tuple[Tensor, ...]]:
        """The backbone's output for each resolution: leading tokens [V_r*B, t, D], and of the global views the masked patches [M, D]."""
        local = inputs[1:]  # [OBJ] sees all of a local view
        if self.packed:
            return self.backbone(inputs, [mask] + [None] * len(local), replace, [masked] + [none] * len(local))
        return [
            self.backbone(inputs[0], mask, replace, masked),
            *(self.backbone(views, patches=none) for views in local),
        ]

    @torch.no_grad()
    def _targets(
        self, views: Tensor, mask: Optional[Tensor], masked: Tensor, batch: int
    ) -> Tuple[Tensor, Optional[Tensor]]:
        """The teacher's distributions of the leading tokens [G, B, t, K] and of the patches ``masked`` [M, K]; the head's centers follow."""
        backbone, neck = self.teacher['backbone'], self.teacher['neck']
        every = None
        if self.lambda_patch and self.head.patch_center_of_all:
            tokens = backbone(views, mask)[-1]
            leading, patches = tokens[:, : backbone.num_class_tokens], tokens[:, backbone.num_leading_tokens :]
            every = _sum_of_logits(neck, patches)
            patches = patches.flatten(0, 1)[masked]
        else:
            leading, patches = backbone(views, mask, patches=masked)[-2:]
        logits, patch_logits = self._project(neck, leading, patches if self.lambda_patch else None)
        targets = self.head.token_targets(logits.unflatten(0, (-1, batch)))
        return targets, None if patch_logits is None else self.head.patch_targets(patch_logits, every)

    @staticmethod
    def _project(neck: nn.Module, leading: Tensor, patches: Optional[Tensor]) -> Tuple[Tensor, Optional[Tensor]]:
        """Logits of the leading tokens [n, t, D] and of patches [M, D], in one call where that changes nothing."""
        if patches is None:
            return neck(leading), None
        if neck.uses_batch_statistics:  # [OBJ] and patches are two populations
            return neck(leading), neck(patches)
        tokens = leading.flatten(0, 1)
        logits, patch_logits = neck(torch.cat((tokens, patches))).split([len(tokens), len(patches)])
        return logits.unflatten(0, leading.shape[:2]), patch_logits


def _sum_of_logits(neck: nn.Module, patches: Tensor) -> Tuple[Tensor, int]:
    """The sum [K] of the logits of all patches [n, N, D], and their number.

    The last layer is linear: the sum of logits is the logit of the sum, and no [n*N, K] is built.
    """
    z = neck.embed(patches).float().flatten(0, -2)  # [n*N, d]
    return neck.prototypes(z.sum(0)).float(), len(z)
