"""Projection of a feature map's mean and of its cells."""

import copy

import torch.nn.functional as F
from mmpretrain.registry import MODELS
from torch import Tensor

from ..weight_init import init_linears
from .projection import ProjectionNeck


@MODELS.register_module()
class GlobalLocalNeck(ProjectionNeck):
    """A second projector beside that of :class:`ProjectionNeck`, of the same shape but with weights of its own.

    The inherited one projects cells, which meet the prototypes; the second one projects whole images, which do not.

    Args:
        *args, **kwargs: See :class:`ProjectionNeck`; ``in_channels`` are those of the map.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.global_mlp = copy.deepcopy(self.mlp)

    def init_weights(self) -> None:
        """Draw the weights of both projectors by :func:`init_linears`."""
        super().init_weights()
        init_linears(self.global_mlp)

    def embed_images(self, maps: Tensor) -> Tensor:
        """Turn maps [n, C, H, W] into the unit vectors of their means, float32 [n, bottleneck]."""
        return F.normalize(self.global_mlp(maps.mean((2, 3))).float(), dim=-1)
