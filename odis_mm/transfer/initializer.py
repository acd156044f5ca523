"""The way a checkpoint enters a model that mmengine initialises."""

from typing import Any, Optional, Sequence

from mmengine.logging import print_log
from mmengine.model import BaseModule, update_init_info
from mmengine.registry import WEIGHT_INITIALIZERS

from .loading import Report, load_backbone


@WEIGHT_INITIALIZERS.register_module()
class VerifiedPretrained:
    """``init_cfg=dict(type='VerifiedPretrained', checkpoint=...)`` on a backbone: :func:`load_backbone`, and it stays
    loaded.

    mmengine builds a model first and initialises it afterwards, so weights loaded in a constructor are drawn anew.
    Only the type name 'Pretrained' is spared: ``BaseModule`` applies every other initializer *before* the children
    draw theirs, and ``mmpretrain.VisionTransformer`` draws ``pos_embed`` after that. This initializer therefore lets
    the children go first, loads, and then leaves the module looking as those two classes expect of a pretrained one.

    Args:
        checkpoint: The file; None means random initialisation, which the log says.
        allow_missing: Names (shell patterns) of module tensors that the file need not have.
        allow_unexpected: Names (shell patterns) of backbone tensors in the file that the module need not have.
    """

    def __init__(
        self, checkpoint: Optional[str] = None, allow_missing: Sequence[str] = (), allow_unexpected: Sequence[str] = ()
    ):
        self.checkpoint = checkpoint
        self.allow_missing = allow_missing
        self.allow_unexpected = allow_unexpected
        self.report: Optional[Report] = None

    def __call__(self, module: Any) -> None:
        kind = type(module).__name__
        if self.checkpoint is None:
            print_log(
                f'backbone <- random initialisation of {kind}: no checkpoint is set '
                '(--cfg-options model.backbone.init_cfg.checkpoint=FILE)',
                logger='current',
            )
            return
        for child in module.children():
            if isinstance(child, BaseModule) and not child.is_init:
                child.init_weights()
        self.report = load_backbone(
            module, self.checkpoint, allow_missing=self.allow_missing, allow_unexpected=self.allow_unexpected
        )
        module.init_cfg = dict(type='Pretrained', checkpoint=self.checkpoint)
        if hasattr(module, '_params_init_info'):
            update_init_info(module, init_info=f'loaded and verified: {self.report}')
