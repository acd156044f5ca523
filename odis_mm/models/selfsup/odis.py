"""ODIS: object-level self-distillation (Hizli, Yildiz, Marttinen; arXiv 2506.05409, 2025). iBOT is its special case."""

from typing import Dict, List, Optional, Tuple

import torch
from mmengine.dist import all_reduce
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ...utils.errors import ConfigError
from .base import TeacherStudent


@MODELS.register_module()
class ODIS(TeacherStudent):
    """loss = L_obj + lambda_patch L_patch + lambda_img L_img.

    L_obj compares the [OBJ] tokens of a teacher's global view and another view of the student, where [OBJ] sees one
    object only; L_patch compares masked patches of the student with the same, unmasked, of the teacher (iBOT); L_img is
    iBOT's and DINO's loss on an unmasked [CLS]. With ``masked_attention=False`` and plain cropping it is iBOT (arXiv
    2111.07832).

    Args:
        lambda_patch: Weight of L_patch (paper: 1). 0 leaves out the mask token and the patch branch.
        lambda_img: Weight of L_img (paper: 0); needs ``backbone.cls_beside_object=True``.
        packed: Run the student on all resolutions at once, see ``ObjectViT.forward``: for GPUs that wait for small
            kernels; same losses.
        masked_attention: Let [OBJ] see the object's patches only, in teacher and student; False: the whole view.
        lambda_pool: Weight of L_pool, this project's option (paper: 0): as L_obj, but of the mean of an object's
            patches after the last block, between the global views, for the target and for the further objects of
            ``SampleViews(others=n)``. Without it and without L_patch no loss reads the last block's patches, and these
            are what a detector reads.
        **kwargs: See :class:`TeacherStudent`; the backbone an ``ObjectViT``, the head a ``DistillationHead`` or an
            ``EmbeddingHead``.

    Raises:
        ConfigError: options that exclude each other, or ``lambda_img`` without a [CLS].
    """

    all_there = False  # True: no pooled object is looked for in its crop, so that a step can be counted without values

    def __init__(
        self,
        *args,
        lambda_patch: float = 1.0,
        lambda_img: float = 0.0,
        masked_attention: bool = True,
        packed: bool = False,
        lambda_pool: float = 0.0,
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
        if lambda_pool and packed:
            raise ConfigError(
                'model.lambda_pool reads all patches, which model.packed does not keep: leave one of them out.'
            )
        if lambda_pool and self.head.patch_center_of_all:
            raise ConfigError("model.lambda_pool needs model.head.patch_center='masked'.")
        self.packed = packed
        self.lambda_pool = lambda_pool
        if lambda_patch:  # outside the backbone: an exported backbone has no use for it
            self.mask_token = nn.Parameter(torch.zeros(self.backbone.embed_dims))

    prototype_loss = 'loss_obj'
    reads_object_token = True

    def image_features(self, output: Tuple[Tensor, ...]) -> Tensor:
        """Return the mean of the k [OBJ] tokens, float ``[n, D]``."""
        tokens = output[-1] if output[-1].ndim == 3 else output[-2]  # the leading ones apart
        return tokens[:, self.backbone.object_slice].mean(1)

    def extract_feat(self, inputs: Tensor, object_mask: Optional[Tensor] = None) -> Tuple[Tensor, Tensor]:
        """Return the teacher's features.

        Args:
            inputs: [B, 3, H, W], normalised.
            object_mask: bool [B, N], the patches of the object in question; None: the whole image.

        Returns:
            The mean of the k [OBJ] tokens, ``[B, D]``, and the patch tokens, ``[B, N, D]``.
        """
        tokens = self.teacher['backbone'](inputs, object_mask)[-1]
        return tokens[:, self.backbone.object_slice].mean(1), tokens[:, self.backbone.num_leading_tokens :]

    def compute_losses(self, inputs: List[Tensor], data_samples: dict) -> Dict[str, Tensor]:
        """Return the losses of V views of B images: G global ones at one resolution, the others after them.

        Args:
            inputs: Normalised views per resolution, [V_r*B, 3, H, W], global views first, view-major.
            data_samples: object_mask (list over resolutions), object_visible [B, V], mim_mask [G * B, N], mim_index
                [M], mim_weight [M]; other_masks [G * B, n, N] if the pipeline draws further objects.

        Raises:
            ConfigError: the masks are of other patches than the backbone's.
        """
        if self.masked_attention or self.lambda_patch:
            drawn = data_samples['object_mask'][0] if self.masked_attention else data_samples['mim_mask']
            side, pixels = self.backbone.patch_embed.projection.stride[0], inputs[0][0, 0].numel()
            if drawn.shape[1] * side**2 != pixels:
                raise ConfigError(
                    f'SampleViews (train_dataloader.dataset.pipeline) divides a global view into {drawn.shape[1]} '
                    f'patches, model.backbone.patch_size={side} into {pixels // side**2}: set patch_size of both to '
                    'one number.'
                )
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
        pooled = self._objects_of(data_samples, len(inputs[0])) if self.lambda_pool else None
        targets, patch_targets, pool_targets = self._targets(inputs[0], masks[0], masked, batch, pooled)
        student, means = self._student(inputs, masks[0], replace, masked, none, pooled)
        leading = torch.cat([out[-2] for out in student])  # [V*B, t, D]
        logits, patch_logits = self.project(self.neck, leading, student[0][-1] if self.lambda_patch else None)
        logits = logits.unflatten(0, (-1, batch))  # [V, B, t, K]

        objects = self.backbone.object_slice
        losses = dict(loss_obj=self.head.token_loss(logits[:, :, objects], targets[:, :, objects], visible))
        losses.update(self.head.monitor(targets))
        if self.lambda_img:
            losses['loss_img'] = self.lambda_img * self.head.token_loss(logits[:, :, :1], targets[:, :, :1])
        if self.lambda_patch:
            patch_loss = self.head.patch_loss(patch_logits, patch_targets, data_samples['mim_weight'])
            losses['loss_patch'] = self.lambda_patch * patch_loss
        if pooled is not None:
            shown = pooled.any(-1).unflatten(0, (-1, batch)).flatten(1).T  # [B*n, G]
            each = self._project_there(self.neck, means.flatten(0, 1), pooled.any(-1).flatten())
            each = each.unflatten(0, (shown.shape[1], len(shown), 1))  # [G, B*n, 1, K]
            losses['loss_pool'] = self.lambda_pool * self.head.token_loss(each, pool_targets.view(each.shape), shown)
            there = pooled.any(-1).flatten()
            losses.update({f'pool_{name}': value for name, value in self.head.monitor(pool_targets, there).items()})
        shown = data_samples['object_visible'][:, : len(inputs[0]) // batch]  # [B, G]
        losses['visible_share'] = shown.all(1).float().mean()  # of images, in all global views
        return losses

    @staticmethod
    def _objects_of(data_samples: dict, views: int) -> Tensor:
        """Patches of the target and of the further objects in the global views, bool [G*B, n, N]."""
        target = data_samples['object_mask'][0][:views, None]
        return torch.cat((target, data_samples['other_masks']), 1) if 'other_masks' in data_samples else target

    def _student(
        self,
        inputs: List[Tensor],
        mask: Optional[Tensor],
        replace: Optional[Tuple[Tensor, Tensor]],
        masked: Tensor,
        none: Tensor,
        pooled: Optional[Tensor],
    ) -> Tuple[List[Tuple[Tensor, ...]], Optional[Tensor]]:
        """The backbone's output for each resolution: leading tokens [V_r*B, t, D], and of the global views the masked
        patches [M, D]; and the mean patches of ``pooled`` [G*B, n, D]."""
        local = inputs[1:]  # [OBJ] sees all of a local view
        if self.packed:
            out = self.backbone(inputs, [mask] + [None] * len(local), replace, [masked] + [none] * len(local))
            return out, None
        leading, patches, means = read_tokens(self.backbone, inputs[0], mask, replace, masked, pooled)
        return [(leading, patches), *(self.backbone(views, patches=none) for views in local)], means

    @torch.no_grad()
    def _targets(
        self, views: Tensor, mask: Optional[Tensor], masked: Tensor, batch: int, pooled: Optional[Tensor]
    ) -> Tuple[Tensor, Optional[Tensor], Optional[Tensor]]:
        """The teacher's targets of the leading tokens [G, B, t, K], of the patches ``masked`` [M, K] and of the mean
        patches of ``pooled`` [G*B*n, K]; the head's centers follow."""
        backbone, neck = self.teacher['backbone'], self.teacher['neck']
        every, means = None, None
        if self.lambda_patch and self.head.patch_center_of_all:
            tokens = backbone(views, mask)[-1]
            leading = tokens[:, : self.backbone.num_class_tokens]
            patches = tokens[:, self.backbone.num_leading_tokens :]
            every = _sum_of_logits(neck, patches)
            patches = patches.flatten(0, 1)[masked]
        else:
            leading, patches, means = read_tokens(backbone, views, mask, None, masked, pooled)
        logits, patch_logits = self.project(neck, leading, patches if self.lambda_patch else None)
        targets = self.head.token_targets(logits.unflatten(0, (-1, batch)))
        pool_targets = None
        if means is not None:  # tokens of one more view: they move the tokens' center, too, where the object is there
            there = pooled.any(-1).flatten()
            pool_targets = self.head.token_targets(self._project_there(neck, means.flatten(0, 1), there), there)
        return targets, None if patch_logits is None else self.head.patch_targets(patch_logits, every), pool_targets

    def _project_there(self, neck: nn.Module, means: Tensor, there: Tensor) -> Tensor:
        """The logits [n, K] of the means [n, D] of objects that are ``there``, bool [n], and zeros for the others: of
        many data sets most further objects lie outside a crop, and batch norms must not take them for objects that are
        alike."""
        if self.all_there or not neck.uses_batch_statistics:
            return neck(means)
        rows = there.nonzero().flatten()  # waits for the device
        if _rows_of_norms(neck, rows) < 2:  # one row has no variance
            return neck(means)
        logits = neck(means.index_select(0, rows))
        return logits.new_zeros(len(means), logits.shape[1]).index_copy(0, rows, logits)

    @staticmethod
    def project(neck: nn.Module, leading: Tensor, patches: Optional[Tensor]) -> Tuple[Tensor, Optional[Tensor]]:
        """Return the logits of the leading tokens [n, t, D] and of patches [M, D], in one call where that changes
        nothing."""
        if patches is None:
            return neck(leading), None
        # [OBJ] and patches are two populations; one row has no variance
        if neck.uses_batch_statistics and _rows_of_norms(neck, patches) > 1:
            return neck(leading), neck(patches)
        tokens = leading.flatten(0, 1)
        logits, patch_logits = neck(torch.cat((tokens, patches))).split([len(tokens), len(patches)])
        return logits.unflatten(0, leading.shape[:2]), patch_logits


def _rows_of_norms(neck: nn.Module, patches: Tensor) -> int:
    """How many of the patches [M, D] the neck's batch norms see. Synced ones see those of all ranks, which wait for
    each other: all have to make the same calls, also a rank that has no masked patch."""
    if not any(isinstance(module, nn.SyncBatchNorm) for module in neck.modules()):
        return len(patches)
    rows = torch.tensor(len(patches), device=patches.device)
    all_reduce(rows)
    return int(rows)


def read_tokens(
    backbone: nn.Module,
    views: Tensor,
    mask: Optional[Tensor],
    replace: Optional[Tuple[Tensor, Tensor]],
    masked: Tensor,
    pooled: Optional[Tensor],
) -> Tuple[Tensor, Tensor, Optional[Tensor]]:
    """Return the leading tokens [m, t, D], the patches ``masked`` [M, D], and the mean patches [m, n, D] of ``pooled``,
    bool [m, n, N], if asked for."""
    if pooled is None:
        return (*backbone(views, mask, replace, masked)[-2:], None)
    tokens = backbone(views, mask, replace)[-1]
    first = backbone.num_leading_tokens
    patches = tokens[:, first:]
    weight = pooled.to(patches.dtype)
    weight = weight / weight.sum(-1, keepdim=True).clamp(min=1)
    return tokens[:, : backbone.num_class_tokens], patches.flatten(0, 1)[masked], weight @ patches


def _sum_of_logits(neck: nn.Module, patches: Tensor) -> Tuple[Tensor, int]:
    """The sum [K] of the logits of all patches [n, N, D], and their number.

    The last layer is linear: the sum of logits is the logit of the sum, and no [n*N, K] is built.
    """
    z = neck.embed(patches).float().flatten(0, -2)  # [n*N, d]
    return neck.prototypes(z.sum(0)).float(), len(z)
