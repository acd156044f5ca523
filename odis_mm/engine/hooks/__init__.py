from .checkpoint import SafeCheckpointHook
from .export import ExportTeacherHook
from .knn import KNNHook
from .progress import ProgressHook
from .regions import RegionProxyHook
from .schedule import NonFiniteLossHook, SelfSupScheduleHook

__all__ = [
    'ExportTeacherHook', 'KNNHook', 'NonFiniteLossHook', 'ProgressHook', 'RegionProxyHook', 'SafeCheckpointHook', 'SelfSupScheduleHook'
]
