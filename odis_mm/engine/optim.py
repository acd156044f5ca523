"""Two parameter groups instead of one per parameter."""

from typing import Optional

from mmengine.optim import OptimWrapper
from mmpretrain.registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from torch import nn

from ..utils.distributed import unwrap
from ..utils.errors import ConfigError

NO_DECAY = ('cls_token', 'pos_embed', 'mask_token', 'object_tokens', 'weight_g')


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Weight decay spares biases, norms (1-d), tokens, positions and the norms of prototypes.

    The releases of DINO and iBOT decay tokens and positions, which have more than one dimension; sparing them is this project's choice.
    """
    return parameter.ndim > 1 and not name.endswith('.bias') and not any(part in name.split('.') for part in NO_DECAY)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class SelfSupOptimWrapperConstructor:
    """Groups the trainable parameters by weight decay alone.

    mmengine's default constructor makes one group per parameter as soon as any rule is given, which turns a fused or foreach optimizer
    into a Python loop over hundreds of tensors.

    Args:
        optim_wrapper_cfg: dict(type, optimizer=dict(...), ...).
        paramwise_cfg: Must be None; the rule is fixed.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: Optional[dict] = None):
        if paramwise_cfg:
            raise ConfigError(
                'SelfSupOptimWrapperConstructor takes no paramwise_cfg: remove optim_wrapper.paramwise_cfg, or '
                "optim_wrapper.constructor to use mmengine's default one."
            )
        self.cfg = dict(optim_wrapper_cfg)

    def __call__(self, model: nn.Module) -> OptimWrapper:
        cfg = dict(self.cfg)
        optimizer = dict(cfg.pop('optimizer'))
        groups: dict[bool, list] = {True: [], False: []}
        for name, parameter in unwrap(model).named_parameters():
            if parameter.requires_grad:
                groups[decays(name, parameter)].append(parameter)
        optimizer['params'] = [dict(params=groups[True]), dict(params=groups[False], weight_decay=0.0)]
        cfg.setdefault('type', 'OptimWrapper')
        return OPTIM_WRAPPERS.build(cfg, default_args=dict(optimizer=OPTIMIZERS.build(optimizer)))
