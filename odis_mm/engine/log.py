"""What a run says on the screen: mmengine's runner and log line, without the reports, and with the share that is
done."""

import copy
import logging
import os.path as osp
import re
import sys
from datetime import timedelta
from typing import Tuple, Union

from mmcv.transforms import LoadImageFromFile
from mmengine.dist import master_only
from mmengine.logging import MMLogger
from mmengine.registry import RUNNERS
from mmengine.runner import LogProcessor, Runner
from mmpretrain.registry import LOG_PROCESSORS
from torch.utils.data import DataLoader

from ..datasets.image_io import LoadNamedImage
from ..datasets.workers import leave_signals_to_the_run
from ..utils.files import atomic_write_text
from ..utils.nested import dicts
from ..utils.noise import quiet_console


@RUNNERS.register_module()
class QuietRunner(Runner):
    """mmengine's ``Runner``, whose reports of environment, config and hooks go to the log file alone, whose loader
    workers leave signals to the run, whatever starts them, and whose ``LoadImageFromFile`` names a file that it cannot
    read."""

    @staticmethod
    def build_dataloader(dataloader: Union[DataLoader, dict], *args, **kwargs) -> DataLoader:
        if isinstance(dataloader, dict):
            dataloader = copy.deepcopy(dataloader)  # the config that is written keeps what other tools know
            for step in dicts(dataloader):
                kind = step.get('type')
                if kind is LoadImageFromFile or str(kind).rpartition('.')[2] == LoadImageFromFile.__name__:
                    step['type'] = LoadNamedImage
        return leave_signals_to_the_run(Runner.build_dataloader(dataloader, *args, **kwargs))

    def build_logger(self, *args, **kwargs) -> MMLogger:
        logger = super().build_logger(*args, **kwargs)
        quiet_console(logger)
        for handler in logger.handlers:
            if isinstance(handler, logging.FileHandler):
                tell_once(handler)
        return logger

    @master_only
    def dump_config(self) -> None:
        """Write the config by way of another file: a run that goes on with a full disk keeps the one that was there.

        What the run was resumed from is left out, so that the file trains the same again.
        """
        name = osp.basename(self.cfg.filename) if self.cfg.filename else f'{self.timestamp}.py'
        cfg = copy.deepcopy(self.cfg)
        if cfg.get('resume'):
            cfg.resume, cfg.load_from = False, None
        atomic_write_text(osp.join(self.work_dir, name), cfg.dump())


def tell_once(handler: logging.FileHandler) -> None:
    """Let a log file that cannot be written cost one line on the screen, not a traceback for each record."""
    report, told = handler.handleError, False

    def handle_error(record: logging.LogRecord) -> None:
        nonlocal told
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            report(record)
        elif not told:
            told = True
            print(f'{handler.baseFilename}: {error.strerror}: lines of this log are lost.', file=sys.stderr, flush=True)

    handler.handleError = handle_error


WIDTH = 160  # columns of a line on the screen, with the time before it
SHOWN = {  # on the line of an iteration, what matters most first: how it is written, and how wide that is
    'lr': ('.2e', 8),
    'eta': ('', 8),
    'loss': ('.4f', 7),
    'similarity': ('.3f', 5),
    'effective_rank': ('.1f', 4),
    'images/s': ('.1f', 5),
    'teacher_spread': ('.3f', 5),
    'teacher_entropy': ('.3f', 5),
    'rotation_accuracy': ('.1f', 4),
    'memory': ('d', 5),  # MB, on a GPU
    'data_wait': ('.2f', 4),
    'grad_norm': ('.2f', 5),
}


@LOG_PROCESSORS.register_module()
class RunLogProcessor(LogProcessor):
    """mmengine's ``LogProcessor``, whose line of an iteration fits into a terminal: the share of the run that is done,
    and of ``SHOWN`` what there is and ``WIDTH`` columns hold.

    All scalars go to ``scalars.json``, TensorBoard and W&B; ``base_lr`` not where there is an ``lr``, ``data_time`` not
    where there is a ``data_wait``.
    """

    def get_log_after_iter(self, runner, batch_idx: int, mode: str) -> Tuple[dict, str]:
        tag, line = super().get_log_after_iter(runner, batch_idx, mode)
        if mode != 'train':
            return tag, line
        for double, kept in (('base_lr', 'lr'), ('data_time', 'data_wait')):
            if kept in tag:
                tag.pop(double, None)
        values = dict(tag)
        if 'eta' in runner.message_hub.runtime_info:
            values['eta'] = str(timedelta(seconds=int(runner.message_hub.get_info('eta'))))
        head = re.match(r'\w+\(train\)\s*(?:\[[^\]]*\])+', line)[0]
        parts = [f'{head} {100 * (runner.iter + 1) / runner.max_iters:5.1f} %']
        left = WIDTH - len('11/26 12:00:00  ') - len(parts[0])
        for name, (form, width) in SHOWN.items():
            need = len(f'  {name}: ') + width  # not that of this value: the next line has the same columns
            if name in values and need <= left:
                left -= need
                parts.append(f'{name}: {values[name]:{form}}')
        return tag, '  '.join(parts)

    def get_log_after_epoch(self, runner, batch_idx: int, mode: str, with_non_scalar: bool = False) -> Tuple[dict, str]:
        tag, line = super().get_log_after_epoch(runner, batch_idx, mode, with_non_scalar)
        return tag, re.sub(r'coco/[^:]+: (?:-1\.0000|nan)\s*', '', line)
