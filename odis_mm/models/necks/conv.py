"""Convolutional projection of patch maps (GTSA, arXiv 2304.08014)."""

from typing import Optional

import torch.nn.functional as F
from mmengine.model import BaseModule
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ..linear import linear


@MODELS.register_module()
class ConvNeck(BaseModule):
    """n x [conv 3x3, LayerNorm over channels without affine, GELU], then conv 1x1.

    GTSA's projector is two residual blocks of the backbone's width, its predictor one wider block without residual.

    Args:
        in_channels: Width of the map.
        hidden_channels: Width of the blocks (paper, ViT-S: 384; predictor: 768).
        out_channels: Width of the result (paper: 768).
        num_blocks: n (paper: 2; predictor: 1).
        residual: Add a block's input to its output where the widths agree (paper: yes; predictor: no).
        init_cfg: Normal weights of standard deviation 0.02 and biases of 0 (the paper's release) by default.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int = 384,
        out_channels: int = 768,
        num_blocks: int = 2,
        residual: bool = True,
        init_cfg: Optional[dict] = dict(type='Normal', layer='Conv2d', std=0.02, bias=0),
    ):
        super().__init__(init_cfg)
        self.in_channels, self.out_channels = in_channels, out_channels
        widths = [in_channels] + [hidden_channels] * num_blocks
        self.blocks = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in zip(widths, widths[1:]))
        self.project = nn.Conv2d(widths[-1], out_channels, 1)
        self.residual = residual

    def forward(self, maps: Tensor) -> Tensor:
        """Project [B, in_channels, h, w] to [B, out_channels, h, w]; channels last in memory stays so, and saves
        copies."""
        x = maps.permute(0, 2, 3, 1)
        for conv in self.blocks:
            y = conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            y = F.gelu(F.layer_norm(y, y.shape[-1:]))
            x = x + y if self.residual and x.shape == y.shape else y
        # as a convolution of 1 x 1 on one thread of a CPU, fewer than 16 maps would get torch's slow kernel in float32
        return linear(x, self.project.weight.flatten(1), self.project.bias).permute(0, 3, 1, 2)
