from .base import TeacherStudent
from .gtsa import GTSA
from .odis import ODIS

__all__ = ['GTSA', 'ODIS', 'TeacherStudent']
