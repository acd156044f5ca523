"""Lines of other packages that a user cannot act on, kept off the screen: each by name, all of them here.

Log files keep what goes through a logger.
"""

import logging
import re
import sys
import warnings
from contextlib import contextmanager
from importlib import import_module
from typing import Iterator

PRINTED = (
    r'Could not import OneDL',  # mmdet, at import
    r'loading annotations into memory\.\.\.$',  # pycocotools, for each data set of a detector
    r'Done \(t=[\d.]+s\)$',
    r'creating index\.\.\.$',
    r'index created!$',
    r'Loads checkpoint by ',  # mmengine, of the file to resume from, which is named before
)
LOGGED = (
    r'"FileClient" will be deprecated',  # mmengine's checkpoint hook uses it
    r'"HardDiskBackend" is the alias',
    r'Loads checkpoint by ',  # said again, with the outcome, by what loads it
    r'Advance dataloader \d+ steps',  # of a resumed run counted in iterations, also where none are left
    r'Exp name: ',
    r'Distributed training is not used, all SyncBatchNorm',
    r'Failed to search registry with scope "\w+" in the "function"',  # mmdet's inferencer, of mmengine's own collate
    r'Using env variable ',  # the data roots, which the data set names
    r'Checkpoints will be saved to ',  # the work dir, said before
    r'Dataset \w+ has no metainfo',
    r'init_weights of \w+ has been called more than once',
    r'\s*-+\s*System environment:',  # hundreds of lines: environment, config, and hooks by stage
    r'Config:\n',
    r'Hooks will be executed in the following order',
)
WARNED_AT_IMPORT = (r'faster_coco_eval is not installed',)  # mmdet; an extra that nothing here uses
WARNED = (  # mmengine's schedulers: gradients accumulate, or a resumed run catches up
    r'Detected call of `scheduler\.step\(\)` before `optimizer\.step\(\)`',
    r'Seems like `optimizer\.step\(\)` has been overridden',
)


class ConsoleFilter(logging.Filter):
    """Drops the records of ``LOGGED``."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return not any(re.match(pattern, message) for pattern in LOGGED)


def quiet_console(logger: logging.Logger) -> None:
    """Keep ``LOGGED`` off the screen, and what is the same in every line: a message follows its time, a warning its
    level; files get everything."""
    from mmengine.logging.logger import MMFormatter  # here: this module is loaded before anything heavy is

    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler) or any(isinstance(f, ConsoleFilter) for f in handler.filters):
            continue
        handler.addFilter(ConsoleFilter())
        if isinstance(handler.formatter, MMFormatter):
            handler.formatter.info_format = '%(asctime)s  %(message)s'


@contextmanager
def quiet_log() -> Iterator[None]:
    """Log errors alone while the block runs."""
    from mmengine.logging import MMLogger

    logger = MMLogger.get_current_instance()
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def quiet_warnings() -> Iterator[None]:
    """Ignore ``WARNED`` while the block runs."""
    with warnings.catch_warnings():
        for pattern in WARNED:
            warnings.filterwarnings('ignore', message=pattern)
        yield


class _Without:
    """A stream without the lines of ``PRINTED``."""

    def __init__(self, stream):
        self.stream, self.dropping = stream, False

    def write(self, text: str) -> int:
        if any(re.match(pattern, text) for pattern in PRINTED):
            self.dropping = True  # print() writes the end of the line by itself
            return len(text)
        if self.dropping and text == '\n':
            self.dropping = False
            return 1
        self.dropping = False
        return self.stream.write(text)

    def __getattr__(self, name: str):
        return getattr(self.stream, name)


@contextmanager
def quiet_prints() -> Iterator[None]:
    """Keep ``PRINTED`` off the screen while the block runs."""
    stream, sys.stdout = sys.stdout, _Without(sys.stdout)
    try:
        yield
    finally:
        sys.stdout = stream


@contextmanager
def quiet_imports() -> Iterator[None]:
    """Keep ``PRINTED`` and ``WARNED_AT_IMPORT`` off the screen while the block imports."""
    with quiet_prints(), warnings.catch_warnings():
        for pattern in WARNED_AT_IMPORT:
            warnings.filterwarnings('ignore', message=pattern)
        yield


def import_quietly(*names: str) -> None:
    """Import modules that the first look into a registry would import, with their lines on the screen."""
    with quiet_imports():
        for name in names:
            import_module(name)
