from .checkpoint import SafeCheckpointHook
from .export import ExportTeacherHook
from .progress import ProgressHook
from .schedule import NonFiniteLossHook, SelfSupScheduleHook

__all__ = ['ExportTeacherHook', 'NonFiniteLossHook', 'ProgressHook', 'SafeCheckpointHook', 'SelfSupScheduleHook']
