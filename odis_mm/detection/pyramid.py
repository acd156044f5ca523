"""Feature pyramids for a plain ViT, whose maps all have one stride: the patch size p."""

from typing import List, Sequence, Tuple

import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

from ..utils.errors import ConfigError

SCALES = (4, 2, 1, 0.5)
# over the channels of [B, C, H, W] (ViTDet's); mmcv's 'LN' normalises the width of a map
LAYER_NORM = dict(type='mmpretrain.LN2d', eps=1e-6)
# A ViT's map is a permuted token sequence, and convolutions pass that memory layout on. mmcv's RoIAlign reads the
# memory of its input as if it were contiguous, and returns features of other places: so the pyramids make it so.


def _rescale(scale: float, channels: int, norm_cfg: dict, keep_width: bool) -> Tuple[nn.Module, int]:
    """The learned change of resolution by ``scale``, and its output width."""
    if scale == 4:
        half, quarter = (channels, channels) if keep_width else (channels // 2, channels // 4)
        return nn.Sequential(
            nn.ConvTranspose2d(channels, half, 2, stride=2),
            build_norm_layer(norm_cfg, half)[1],
            nn.GELU(),
            nn.ConvTranspose2d(half, quarter, 2, stride=2),
        ), quarter
    if scale == 2:
        half = channels if keep_width else channels // 2
        return nn.ConvTranspose2d(channels, half, 2, stride=2), half
    if scale == 1:
        return nn.Identity(), channels
    if scale == 0.5:
        return nn.MaxPool2d(2, stride=2), channels
    raise ConfigError(f'a pyramid of a plain ViT has the scales 4, 2, 1 and 0.5, not {scale}.')


def pyramid_strides(patch_size: int, scales: Sequence[float] = SCALES, extra_levels: int = 0) -> List[float]:
    """Return the pixels per cell at each level: what anchors and RoI extractors of the config need, for any patch size.

    >>> pyramid_strides(16, extra_levels=1)
    [4, 8, 16, 32, 64]
    """
    strides = [patch_size / scale for scale in scales]
    strides += [strides[-1] * 2**i for i in range(1, extra_levels + 1)]
    return [int(s) if s == int(s) else s for s in strides]


@MODELS.register_module()
class ViTFeaturePyramid(BaseModule):
    """Maps tapped at several depths of a plain ViT, rescaled to a pyramid; mmdet's FPN follows it in the config.

    x4: deconv-norm-GELU-deconv, x2: deconv, x1: as it is, x1/2: max-pool, widths kept: the detector of the GTSA paper
    (arXiv 2304.08014), as BEiT and iBOT do it for dense tasks.

    Args:
        in_channels: Width of the ViT.
        scales: One factor per tapped map, shallow to deep.
        norm_cfg: BN is what the papers use; :data:`LAYER_NORM` does without batch statistics.
    """

    def __init__(
        self, in_channels: int, scales: Sequence[float] = SCALES, norm_cfg: dict = dict(type='BN'), init_cfg=None
    ):
        super().__init__(init_cfg)
        self.levels = nn.ModuleList(_rescale(scale, in_channels, norm_cfg, keep_width=True)[0] for scale in scales)

    def forward(self, inputs: Sequence[Tensor]) -> Tuple[Tensor, ...]:
        """Turn len(scales) maps [B, C, H, W] into as many [B, C, H * scale, W * scale].

        Raises:
            ConfigError: another number of maps than scales.
        """
        if len(inputs) != len(self.levels):
            raise ConfigError(
                f'the backbone gives {len(inputs)} maps (its out_indices) for {len(self.levels)} pyramid scales.'
            )
        return tuple(level(x.contiguous()) for level, x in zip(self.levels, inputs))


@MODELS.register_module()
class ViTSimplePyramid(BaseModule):
    """The simple pyramid of ViTDet (arXiv 2203.16527, section 3): every level from the last map, no top-down path.

    x4: deconv-LN-GELU-deconv, x2: deconv, each deconv halving the width, x1, x1/2: max-pool; then a 1x1 and a 3x3
    convolution, each with LN over channels; and max-pooled levels on top for the RPN.

    Args:
        in_channels: Width of the ViT.
        out_channels: Width of every level.
        scales: Factor of each level to the last map.
        extra_levels: Levels above the last, each halving the resolution (ViTDet: 1).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 256,
        scales: Sequence[float] = SCALES,
        extra_levels: int = 1,
        init_cfg=None,
    ):
        super().__init__(init_cfg)
        self.levels = nn.ModuleList()
        for scale in scales:
            rescale, width = _rescale(scale, in_channels, LAYER_NORM, keep_width=False)
            self.levels.append(
                nn.Sequential(
                    rescale,
                    nn.Conv2d(width, out_channels, 1, bias=False),
                    build_norm_layer(LAYER_NORM, out_channels)[1],
                    nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
                    build_norm_layer(LAYER_NORM, out_channels)[1],
                )
            )
        self.extra_levels = extra_levels

    def forward(self, inputs: Sequence[Tensor]) -> Tuple[Tensor, ...]:
        """Turn the last of ``inputs``, [B, C, H, W], into a map [B, out_channels, H * scale, W * scale] per level."""
        x = inputs[-1].contiguous()
        outs = [level(x) for level in self.levels]
        for _ in range(self.extra_levels):
            outs.append(F.max_pool2d(outs[-1], 1, stride=2))
        return tuple(outs)
