"""Backbone weights under the names of other libraries."""
from typing import Dict

from torch import Tensor

# mmpretrain.VisionTransformer (layers.3.ffn.layers.0.0.weight) -> timm (blocks.3.mlp.fc1.weight); order matters
_TO_TIMM = (
    ('patch_embed.projection.', 'patch_embed.proj.'),
    ('.ffn.layers.0.0.', '.mlp.fc1.'),
    ('.ffn.layers.1.', '.mlp.fc2.'),
    ('.attn.gamma1.weight', '.ls1.gamma'),
    ('.ffn.gamma2.weight', '.ls2.gamma'),
    ('.ln1.', '.norm1.'),
    ('.ln2.', '.norm2.'),
)


def to_timm(state_dict: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """Rename an exported backbone for ``timm``'s ``VisionTransformer`` (``num_classes=0``, the same patch and image
    size).

    Args:
        state_dict: Tensors of a ``mmpretrain.VisionTransformer`` with [CLS] and final norm, with or without
            ``backbone.``.

    Returns:
        The same tensors (no copies) under timm's names.

    Raises:
        ValueError: a name that a plain ViT does not have.
    """
    renamed = {}
    for name, tensor in state_dict.items():
        key = name.removeprefix('backbone.')
        if key.startswith('ln1.'):
            key = 'norm.' + key[len('ln1.'):]
        elif key.startswith('layers.'):
            for old, new in _TO_TIMM[1:]:
                key = key.replace(old, new)
            key = 'blocks.' + key[len('layers.'):]
        elif key.startswith('patch_embed.'):
            key = key.replace(*_TO_TIMM[0])
        elif key not in ('cls_token', 'pos_embed'):
            raise ValueError(f"'{name}' is no tensor of a plain mmpretrain.VisionTransformer; timm has no name for it.")
        renamed[key] = tensor
    return renamed
