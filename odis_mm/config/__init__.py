"""Finding, reading, overriding and checking configs."""

from ..utils.errors import nearest
from ..utils.paths import config_root, shipped_configs
from .checks import check_classifier, check_init, explain_build_error, follow_channels
from .classes import arguments_of, find_class
from .options import RUNNER_KEYS, apply_options, check_top_level, drop_variables, parse_options
from .reading import load_config
from .schedule import MADE, beyond_the_end, check_schedule, fit_schedule, in_iterations

__all__ = [
    'MADE',
    'RUNNER_KEYS',
    'apply_options',
    'arguments_of',
    'beyond_the_end',
    'check_classifier',
    'check_init',
    'check_schedule',
    'check_top_level',
    'config_root',
    'drop_variables',
    'explain_build_error',
    'find_class',
    'fit_schedule',
    'follow_channels',
    'in_iterations',
    'load_config',
    'nearest',
    'parse_options',
    'shipped_configs',
]
