"""From a checkpoint file to a backbone that verifiably holds it, and back."""
from .checkpoint import CheckpointError, CheckpointWriteError, atomic_save, read_checkpoint, save_backbone
from .initializer import VerifiedPretrained
from .loading import Report, describe_vit, load_backbone
from .positions import resize_positions
from .rename import to_timm
from .safe_globals import allow_mmengine_histories

allow_mmengine_histories()

__all__ = [
    'CheckpointError', 'CheckpointWriteError', 'Report', 'VerifiedPretrained', 'allow_mmengine_histories',
    'atomic_save', 'describe_vit', 'load_backbone', 'read_checkpoint', 'resize_positions', 'save_backbone', 'to_timm'
]
