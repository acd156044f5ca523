from .base import TeacherStudent
from .odis import ODIS

__all__ = ['ODIS', 'TeacherStudent']
