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
        """[OBJ] [n, D]: the mean over the k tokens."""
        tokens = output[-1] if output[-1].ndim == 3 else output[-2]  # the leading ones apart
        return tokens[:, self.backbone.object_slice].mean(1)

    def extract_feat(self, inputs: Tensor, object_mask: Optional[Tensor] = None) -> Tuple[Tensor, Tensor]:
        """The teacher's features.

        Args:
            inputs: [B, 3, H, W], normalised.
            object_mask: bool [B, N], the patches of the object in question; None: the whole image.

        Returns:
            [OBJ] [B, D] (mean over the k tokens) and patch tokens [B, N, D].
        """
        tokens = self.teacher['backbone'](inputs, object_mask)[-1]
        return tokens[:, self.backbone.object_slice].mean(1), tokens[:, self.backbone.num_leading_tokens :]

    def compute_losses(self, inputs: List[Tensor], data_samples: dict) -> Dict[str, Tensor]:
        """V views of B images: G global ones at one resolution, the others after them.

        Args:
            inputs: Normalised views per resolution, [V_r*B, 3, H, W], global views first, view-major.
            data_samples: object_mask (list over resolutions), object_visible [B, V], mim_mask [G*B, N], mim_index [M], mim_weight [M].
        """
        visible = data_samples['object_visible']  # [B, V]
        batch, first_patch = len(visible), self.backbone.num_leading_tokens
        masks = data_samples['object_mask'] if self.masked_attention else [None]
        replace = (data_samples['mim_mask'], self.mask_token) if self.lambda_patch else None

        # of the last block only the leading tokens and the masked patches are read; they are projected in one call each for student
        # and teacher. The teacher comes first: its logits are gone before the student's are there
        none = visible.new_zeros(0, dtype=torch.int64)
        index = data_samples['mim_index'] if replace is not None else none
        targets, patch_targets = self._targets(inputs[0], masks[0], index, batch)
        if self.packed:
            others = len(inputs) - 1
            student = self.backbone(inputs, [masks[0]] + [None] * others, replace, [index] + [none] * others)
        else:
            student = [self.backbone(inputs[0], masks[0], replace, index)]
            student += [
                self.backbone(views, patches=none) for views in inputs[1:]
            ]  # local views: [OBJ] sees all of them
        leading = torch.cat([out[-2] for out in student])  # [V*B, t, D]
        token_logits, *patch_logits = self._project(
            self.neck, [leading.flatten(0, 1)] + [student[0][-1]] * (replace is not None)
        )
        token_logits = token_logits.unflatten(0, (-1, batch, first_patch))  # [V, B, t, K]

        objects = self.backbone.object_slice
        losses = dict(
            loss_obj=self.head.token_loss(
                token_logits[:, :, objects], targets[:, :, objects], visible if self.masked_attention else None
            )
        )
        if self.lambda_img:
            losses['loss_img'] = self.lambda_img * self.head.token_loss(token_logits[:, :, :1], targets[:, :, :1])
        if replace is not None:
            losses['loss_patch'] = self.lambda_patch * self.head.patch_loss(
                patch_logits[0], patch_targets, data_samples['mim_weight']
            )
        num_global = len(inputs[0]) // batch
        losses['visible_share'] = visible[:, :num_global].all(1).float().mean()  # of images, in all global views
        # ln K: uniform collapse; 0: one prototype for everything
        losses['teacher_entropy'] = -torch.xlogy(targets, targets).sum(-1).mean()
        return losses

    @torch.no_grad()
    def _targets(
        self, views: Tensor, mask: Optional[Tensor], index: Tensor, batch: int
    ) -> Tuple[Tensor, Optional[Tensor]]:
        """The teacher's distributions of the leading tokens [G, B, t, K] and of the patches ``index`` [M, K]; feeds the centers."""
        first_patch, every_patch = self.backbone.num_leading_tokens, None
        if self.lambda_patch and self.head.patch_center_of_all:
            tokens = self.teacher['backbone'](views, mask)[-1]
            leading, every_patch = tokens[:, :first_patch], tokens[:, first_patch:]
            patches = every_patch.flatten(0, 1)[index]
        else:
            leading, patches = self.teacher['backbone'](views, mask, patches=index)[-2:]
        logits, *patch_logits = self._project(
            self.teacher['neck'], [leading.flatten(0, 1)] + [patches] * bool(self.lambda_patch)
        )
        logits = logits.unflatten(0, (-1, batch, first_patch))
        targets = self.head.targets(logits, self.head.token_center)
        self.head.token_center.observe(logits)
        if not patch_logits:
            return targets, None
        patch_targets = self.head.targets(patch_logits[0], self.head.patch_center)
        self._observe_patches(every_patch, patch_logits[0])
        return targets, patch_targets

    @staticmethod
    def _project(neck: nn.Module, parts: List[Tensor]) -> Tuple[Tensor, ...]:
        if neck.uses_batch_statistics:  # [OBJ] and patches are two populations
            return tuple(neck(part) for part in parts)
        return neck(torch.cat(parts)).split([len(part) for part in parts])

    def _observe_patches(self, patches: Optional[Tensor], masked_logits: Tensor) -> None:
        """Feeds the patch center with the masked patches' logits, or with those of all ``patches`` [G*B, N, D]."""
        center = self.head.patch_center
        if patches is None:
            return center.observe(masked_logits)
        neck = self.teacher['neck']
        z = neck.embed(
            patches
        )  # the last layer is linear: the sum of logits is the logit of the sum, and no [G*B*N, K] is built
        center.observe_mean(neck.prototypes(z.float().flatten(0, -2).sum(0)).float(), z[..., 0].numel())
