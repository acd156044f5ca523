"""The methods, one file each, on one base of student and teacher."""

from .alfm import ALFM
from .base import TeacherStudent
from .gtsa import GTSA
from .odis import ODIS

__all__ = ['ALFM', 'GTSA', 'ODIS', 'TeacherStudent']
