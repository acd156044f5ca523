from .export import ExportTeacherHook
from .schedule import NonFiniteLossHook, SelfSupScheduleHook

__all__ = ['ExportTeacherHook', 'NonFiniteLossHook', 'SelfSupScheduleHook']
