"""Hooks: schedules, checkpoints, export, health, bad images, interruption, measures."""

from .bad_images import BadImageHook
from .checkpoint import SafeCheckpointHook
from .export import ExportTeacherHook
from .health import HealthHook
from .knn import KNNHook
from .loading import LoadingHook
from .nonfinite import NonFiniteLossHook
from .preemption import PreemptionHook
from .progress import DeferredInfoHook, ProgressHook
from .regions import RegionProxyHook
from .schedule import SelfSupScheduleHook
from .views import CurvesHook, ViewInspectionHook

__all__ = [
    'BadImageHook',
    'CurvesHook',
    'DeferredInfoHook',
    'ExportTeacherHook',
    'HealthHook',
    'KNNHook',
    'LoadingHook',
    'NonFiniteLossHook',
    'PreemptionHook',
    'ProgressHook',
    'RegionProxyHook',
    'SafeCheckpointHook',
    'SelfSupScheduleHook',
    'ViewInspectionHook',
]
