"""Learning rates that shrink towards the input of a ViT, inside a detector."""

from typing import List

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from ..utils.distributed import unwrap
from ..utils.errors import ConfigError

_TOKENS = ('pos_embed', 'cls_token', 'object_tokens', 'register_tokens')


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class DetectorLayerDecay(DefaultOptimWrapperConstructor):
    """Parameter groups for a detector on a ``mmpretrain.VisionTransformer``.

    A block l (from 1) of a ViT with L blocks learns at lr * rate^(L + 1 - l), the embeddings as l = 0; the final norm
    and everything outside the backbone at lr (ViTDet, arXiv 2203.16527: rate 0.7 for B, 0.8 for L). No weight decay on
    ``pos_embed``, ``cls_token``, norms and biases. Parameters of one rate and one decay share a group: 2 L + 3 groups
    at most, 2 without layer decay.

    paramwise_cfg:
        layer_decay_rate (float): in (0, 1]; 1, the default, means none.
        backbone_lr_mult (float): of all backbone parameters, on top of the layer's factor; 1 by default. Heads that
            start from nothing bear a rate that wrecks pretrained features.

    Raises:
        ConfigError: an unknown or bad setting, or a backbone whose blocks are not named ``backbone.layers.<i>``.
    """

    def _validate_cfg(self) -> None:
        super()._validate_cfg()
        unknown = set(self.paramwise_cfg) - {'layer_decay_rate', 'backbone_lr_mult'}
        if unknown:
            raise ConfigError(
                "DetectorLayerDecay knows 'layer_decay_rate' and 'backbone_lr_mult' in paramwise_cfg, not "
                f'{sorted(unknown)}.'
            )
        self.rate = self.paramwise_cfg.get('layer_decay_rate', 1.0)
        self.backbone_mult = self.paramwise_cfg.get('backbone_lr_mult', 1.0)
        if not 0 < self.rate <= 1:
            raise ConfigError(f'layer_decay_rate must be in (0, 1], got {self.rate}.')
        if self.backbone_mult <= 0:
            raise ConfigError(
                f'backbone_lr_mult must be positive, got {self.backbone_mult}; to freeze blocks set the '
                "backbone's frozen_stages."
            )
        if self.base_lr is None or self.base_wd is None:
            raise ConfigError('DetectorLayerDecay needs lr and weight_decay in the optimizer config.')

    def __call__(self, model: nn.Module):
        # the base class makes no groups if paramwise_cfg is empty; the no-decay rule holds all the same
        self.paramwise_cfg = dict(layer_decay_rate=self.rate, backbone_lr_mult=self.backbone_mult)
        return super().__call__(model)

    def add_params(self, params: List[dict], module: nn.Module, **kwargs) -> None:
        module = unwrap(module)
        trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        blocks = [int(n.split('.')[2]) for n, _ in module.named_parameters() if n.startswith('backbone.layers.')]
        if not blocks and self.rate < 1:
            raise ConfigError(
                'DetectorLayerDecay finds no blocks named backbone.layers.<i>; use it with '
                'mmpretrain.VisionTransformer.'
            )
        top = max(blocks, default=-1) + 2
        groups = {}
        for name, parameter in trained:
            scale = self.rate ** (top - layer_of(name, top))
            if name.startswith('backbone.'):
                scale *= self.backbone_mult
            decay = 0.0 if parameter.ndim <= 1 or name.rsplit('.', 1)[-1] in _TOKENS else self.base_wd
            groups.setdefault((scale, decay), []).append(parameter)
        for (scale, decay), parameters in sorted(groups.items()):
            params.append(dict(params=parameters, lr=self.base_lr * scale, weight_decay=decay))
        rates = sorted({scale for scale, _ in groups})
        print_log(
            f'DetectorLayerDecay: {len(params)} parameter groups learn at {rates[0]:.3g} to {rates[-1]:.3g} times the '
            'lr of the log',
            logger='current',
        )


def layer_of(name: str, top: int) -> int:
    """Return the place of a detector's parameter in the ladder: 0 the embeddings, l the l-th block, ``top`` everything
    else."""
    if name.startswith('backbone.layers.'):
        return int(name.split('.')[2]) + 1
    inside = name.removeprefix('backbone.')
    if name.startswith('backbone.') and (inside in _TOKENS or inside.startswith('patch_embed.')):
        return 0
    return top
