from .alfm import ALFM
from .base import TeacherStudent
from .gtsa import GTSA
from .odis import ODIS

__all__ = ['ALFM', 'GTSA', 'ODIS', 'TeacherStudent']
