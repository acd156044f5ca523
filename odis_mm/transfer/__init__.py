"""From a checkpoint file to a backbone that verifiably holds it, and back."""

from ..utils.errors import CheckpointError, FileWriteError
from ..utils.files import atomic_save, atomic_write
from .build import Proof, build_timm, build_vit, prove
from .checkpoint import read_checkpoint, read_meta, save_backbone
from .conversion import Conversion, convert, to_timm
from .export import build_backbone, transfer
from .initializer import VerifiedPretrained
from .layouts import LAYOUTS
from .loading import Report, describe_vit, fingerprint, load_backbone
from .mmengine_loading import closed_to_code, load_local
from .positions import resize_positions, told_grid
from .reading import Source, read_vit
from .resnet import build_resnet
from .safe_globals import allow_mmengine_histories
from .shape import VitShape

allow_mmengine_histories()

__all__ = [
    'CheckpointError',
    'FileWriteError',
    'Conversion',
    'LAYOUTS',
    'Proof',
    'Report',
    'Source',
    'VerifiedPretrained',
    'VitShape',
    'allow_mmengine_histories',
    'atomic_save',
    'atomic_write',
    'build_backbone',
    'build_resnet',
    'build_timm',
    'build_vit',
    'closed_to_code',
    'convert',
    'describe_vit',
    'fingerprint',
    'load_backbone',
    'load_local',
    'prove',
    'read_checkpoint',
    'read_meta',
    'read_vit',
    'resize_positions',
    'save_backbone',
    'to_timm',
    'told_grid',
    'transfer',
]
