"""ALFM: aligning local features from multi-view (Fang et al., Knowledge-Based Systems 330, 114671, 2025),
reconstructed."""

from typing import Dict, List

import torch
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ...structures import ViewBatch, pair_intersections
from ...utils.errors import ConfigError
from ..backbones import ObjectViT
from ..losses import aligned_cells
from .base import TeacherStudent


@MODELS.register_module()
class ALFM(TeacherStudent):
    """loss = lambda_gmsr L_GMSR + lambda_cdlp L_CDLP. Our reconstruction: only the paper's abstract is public.

    From the abstract: GMSR "maximises the similarity between the embeddings of two views and increases the differential
    entropy of the embeddings of each view"; CDLP predicts "soft labels with rich contextual information" on local
    patches, which aligns local features across views; detection data for pretraining, where the background is signal.
    Ours is everything else: the log-det entropy, the cells and their context, prototypes, center and temperatures, the
    EMA teacher as the target, all numbers.

    - GMSR: a map's mean, projected, is the embedding of a view; see :meth:`ALFMHead.gmsr`.
    - CDLP: what both views show is cut into S x S cells, flips undone. A student's cell of one view predicts the
      prototype distribution of the teacher's same cell in the other view, after that cell took up its context; see
      :meth:`ALFMHead.cdlp`.

    Args:
        lambda_gmsr, lambda_cdlp: Weights; 0 leaves the term, and the training of its projector, out.
        embed_shared: GMSR compares what both views show, the mean of its cells, in place of whole views. Two crops of
            an image that is full of objects often have little in common, and then only their entropy can be learned.
            Images whose views do not overlap are compared as wholes.
        **kwargs: See :class:`TeacherStudent`; an ``ObjectViT`` or any backbone whose last output is a map [B, C, H, W],
            a ``GlobalLocalNeck`` and an ``ALFMHead``.

    Raises:
        ConfigError: both weights are 0.
    """

    prototype_loss = 'loss_cdlp'

    def __init__(self, *args, lambda_gmsr: float = 1.0, lambda_cdlp: float = 1.0, embed_shared: bool = False, **kwargs):
        super().__init__(*args, **kwargs)
        self.embed_shared = embed_shared
        if not (lambda_gmsr or lambda_cdlp):
            raise ConfigError('model.lambda_gmsr and model.lambda_cdlp are both 0: nothing would be learned.')
        self.lambda_gmsr = lambda_gmsr
        self.lambda_cdlp = self.prototype_weight = lambda_cdlp
        if not lambda_gmsr:
            self.neck.global_mlp.requires_grad_(False)
        if not lambda_cdlp:
            self.neck.mlp.requires_grad_(False)
            self.neck.prototypes.requires_grad_(False)

    def extract_feat(self, inputs: Tensor) -> Tensor:
        """Return the teacher's map [B, C, H', W'] of normalised images [B, 3, H, W]."""
        return _last_map(self.teacher['backbone'], inputs)

    def compute_losses(self, inputs: List[Tensor], data_samples: dict) -> Dict[str, Tensor]:
        """Return the losses of two views of B images, view-major.

        Args:
            inputs: One entry: normalised views [2*B, 3, h, w].
            data_samples: crop [B, 2, 4], view_size [B, 2, 2], flip and rot90 [B, 2], as :func:`collate_views` gives
                them.

        Raises:
            ConfigError: there are not two views of one size, or the backbone gives no maps.
        """
        views = ViewBatch(*(data_samples[key] for key in ('crop', 'view_size', 'flip', 'rot90')))
        if len(inputs) != 1 or views.flip.shape[1] != 2:
            raise ConfigError(
                f'ALFM compares two views of one size, and the pipeline makes {views.flip.shape[1]} of {len(inputs)} '
                'size(s): '
                "give SampleViews the single group dict(role='global', num=2, ...)."
            )
        student = _last_map(self.backbone, inputs[0])  # [2*B, C, H, W]
        with torch.no_grad():
            teacher = self.extract_feat(inputs[0])
        first, _, area = pair_intersections(views)  # [B, 2, 2, 4], [B, 2, 2]
        overlap = area[:, 0, 1] > 0
        boxes = torch.cat((first[:, 0, 1], first[:, 1, 0])).float()  # [2*B, 4], what both show, in pixels of either
        where = (boxes, inputs[0].shape[-2:], views.flip.T.flatten(), views.rot90.T.flatten(), self.head.num_cells)
        losses = {}
        if self.lambda_gmsr:
            losses.update(self._gmsr(student, teacher, where, overlap))
            losses['loss_gmsr'] = self.lambda_gmsr * losses['loss_gmsr']
        if self.lambda_cdlp:
            losses.update(self._cdlp(student, teacher, where, overlap))
            losses['loss_cdlp'] = self.lambda_cdlp * losses['loss_cdlp']
        return losses

    def _gmsr(self, student: Tensor, teacher: Tensor, where: tuple, overlap: Tensor) -> Dict[str, Tensor]:
        if self.embed_shared:
            alone = ~overlap.repeat(2)[:, None, None, None]
            student, teacher = (
                torch.where(
                    alone, maps.mean((2, 3), keepdim=True), aligned_cells(maps, *where).mean(1)[..., None, None]
                )
                for maps in (student, teacher)
            )  # [2*B, C, 1, 1]
        with torch.no_grad():
            target = self.teacher['neck'].embed_images(teacher)
        return self.head.gmsr(*(z.unflatten(0, (2, -1)) for z in (self.neck.embed_images(student), target)))

    def _cdlp(self, student: Tensor, teacher: Tensor, where: tuple, overlap: Tensor) -> Dict[str, Tensor]:
        s = self.neck.embed(aligned_cells(student, *where))  # [2*B, S*S, d]
        with torch.no_grad():
            t = self.teacher['neck'].embed(aligned_cells(teacher, *where))
            labels = self.teacher['neck'].prototypes(self.head.enrich(t))
        return self.head.cdlp(*(logits.unflatten(0, (2, -1)) for logits in (self.neck.prototypes(s), labels)), overlap)


def _last_map(backbone: nn.Module, images: Tensor) -> Tensor:
    out = backbone(images)[-1]
    if isinstance(backbone, ObjectViT):  # it yields tokens
        return backbone.to_map(out, images.shape[-2:])
    if out.ndim != 4:
        raise ConfigError(
            f'ALFM needs a backbone that yields maps [B, C, H, W], and {type(backbone).__name__} yields '
            f'{list(out.shape)}: '
            "for mmpretrain's ViTs set model.backbone.out_type='featmap', or take ObjectViT."
        )
    return out
