"""What a job prints around its run."""

import io
import logging
import re

from mmengine.logging import MMLogger, print_log
from mmengine.logging.logger import MMFormatter

from odis_mm.tasks.logs import logging_at


def test_lines_before_the_run_look_like_those_of_it():
    logger, handler = MMLogger.get_current_instance(), logging.StreamHandler(io.StringIO())
    handler.setFormatter(MMFormatter(color=False, datefmt='%m/%d %H:%M:%S'))
    handler.setLevel('INFO')
    logger.addHandler(handler)
    try:
        with logging_at('INFO'):
            print_log('images: 3 without objects', logger='current')
        with logging_at('WARNING'):
            print_log('not told', logger='current')
    finally:
        logger.removeHandler(handler)
    assert re.fullmatch(r'\d\d/\d\d [\d:]{8}  images: 3 without objects\n', handler.stream.getvalue())
