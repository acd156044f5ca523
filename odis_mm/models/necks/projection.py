"""Projection neck with prototypes: from tokens to logits."""

from typing import List, Optional

import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModule
from mmpretrain.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...utils.errors import ConfigError
from ..linear import linear, take_linears
from ..weight_init import init_linears, trunc_normal


class PrototypeLayer(nn.Module):
    """Weight-normalised linear layer: ``logit_k = g_k <z, v_k/|v_k|>``.

    The two factors are plain parameters rather than torch's parametrisation, so that a deep-copied teacher has the same
    names as its student (an EMA by name is silently incomplete otherwise).

    Args:
        in_features: Width of z.
        num_prototypes: K.
        norm_trainable: Learn g; frozen at 1 otherwise (iBOT's recipe: learned for ViT-S; B and L: frozen).
    """

    def __init__(self, in_features: int, num_prototypes: int, norm_trainable: bool = True):
        super().__init__()
        self.weight_v = nn.Parameter(torch.empty(num_prototypes, in_features))
        trunc_normal(self.weight_v)
        self.weight_g = nn.Parameter(self.weight_v.new_ones(num_prototypes, 1), requires_grad=norm_trainable)

    def forward(self, z: Tensor) -> Tensor:
        """Return the logits: [..., in_features] -> [..., K]."""
        return linear(z, self.weight_g * F.normalize(self.weight_v, dim=-1))


def _norm_of_rows(cfg: dict, width: int) -> nn.Module:
    try:
        norm = build_norm_layer(cfg, width)[1]
        norm.eval()(torch.zeros(1, width))
    except (AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"model.neck.norm_cfg={cfg} is no norm of rows [n, {width}]: use dict(type='BN1d'), for several GPUs "
            "dict(type='SyncBN'), or None."
        ) from error
    return norm.train()


@MODELS.register_module()
class ProjectionNeck(BaseModule):
    """Linear-GELU-Linear-GELU-Linear, l2-normalisation, prototypes; shared by [OBJ]/[CLS] and patch tokens (iBOT,
    DINO).

    Args:
        in_channels: D, the backbone's width.
        hidden_channels: Width of the hidden layers (iBOT: 2048).
        bottleneck_channels: Width of the normalised vector (iBOT: 256).
        num_prototypes: K (iBOT: 8192); 0: none, the result is the unit vector, for an ``EmbeddingHead``.
        norm_trainable: See :class:`PrototypeLayer`.
        norm_cfg: Norm after each linear, dict(type='BN1d') or, for several GPUs, dict(type='SyncBN') (DINO's
            ``use_bn_in_head``, MoCo v3); None: none (iBOT's recipes). Batch statistics keep the differences between
            images large however alike a fresh backbone's tokens are: a small model at a small batch learns from its
            first steps on instead of drifting to a uniform answer.

    Raises:
        ConfigError: a ``norm_cfg`` of no norm, or of one of maps, such as dict(type='BN').
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int = 2048,
        bottleneck_channels: int = 256,
        num_prototypes: int = 8192,
        norm_trainable: bool = True,
        norm_cfg: Optional[dict] = None,
        init_cfg=None,
    ):
        super().__init__(init_cfg)
        layers = []
        for width, out in (
            (in_channels, hidden_channels),
            (hidden_channels, hidden_channels),
            (hidden_channels, bottleneck_channels),
        ):
            layers.append(nn.Linear(width, out))
            if norm_cfg is not None:
                layers.append(_norm_of_rows(norm_cfg, out))
            layers.append(nn.GELU())
        self.mlp = nn.Sequential(*layers[:-1])
        take_linears(self.mlp)
        self.uses_batch_statistics = any(isinstance(module, _BatchNorm) for module in layers)
        if num_prototypes:
            self.prototypes = PrototypeLayer(bottleneck_channels, num_prototypes, norm_trainable)
        self.num_prototypes = num_prototypes

    def init_weights(self) -> None:
        """Draw the linear layers by :func:`init_linears`, the prototypes by :func:`trunc_normal`."""
        super().init_weights()
        init_linears(self.mlp)
        if self.num_prototypes:
            trunc_normal(self.prototypes.weight_v)

    def prototype_parameters(self) -> List[nn.Parameter]:
        """Return the parameters that get no gradient in the first epoch."""
        return [p for p in self.prototypes.parameters() if p.requires_grad] if self.num_prototypes else []

    def embed(self, tokens: Tensor) -> Tensor:
        """Turn tokens [..., D] into unit vectors [..., bottleneck]."""
        z = self.mlp(tokens.flatten(0, -2)).unflatten(0, tokens.shape[:-1])  # batch norm takes rows
        return F.normalize(z.float(), dim=-1).to(z.dtype)  # the eps of the norm vanishes in half precision

    def forward(self, tokens: Tensor) -> Tensor:
        """Turn tokens [..., D] into logits [..., K], or to unit vectors if there are no prototypes."""
        z = self.embed(tokens)
        return self.prototypes(z) if self.num_prototypes else z
