"""What a run says on the screen: mmengine's runner and log line, without the reports, and with the share that is
done."""

import re
from typing import Tuple

from mmengine.logging import MMLogger
from mmengine.registry import RUNNERS
from mmengine.runner import LogProcessor, Runner
from mmpretrain.registry import LOG_PROCESSORS
from torch.utils.data import DataLoader

from ..datasets.workers import leave_signals_to_the_run
from ..utils.noise import quiet_console


@RUNNERS.register_module()
class QuietRunner(Runner):
    """mmengine's ``Runner``, whose reports of environment, config and hooks go to the log file alone, and whose loader
    workers leave signals to the run, whatever starts them."""

    @staticmethod
    def build_dataloader(*args, **kwargs) -> DataLoader:
        return leave_signals_to_the_run(Runner.build_dataloader(*args, **kwargs))

    def build_logger(self, *args, **kwargs) -> MMLogger:
        logger = super().build_logger(*args, **kwargs)
        quiet_console(logger)
        return logger


@LOG_PROCESSORS.register_module()
class RunLogProcessor(LogProcessor):
    """mmengine's ``LogProcessor``: the line of an iteration begins with the share of the run that is done, and says
    nothing twice.

    ``base_lr`` goes where there is an ``lr``, ``data_time`` where there is a ``data_wait``.
    """

    def get_log_after_iter(self, runner, batch_idx: int, mode: str) -> Tuple[dict, str]:
        tag, line = super().get_log_after_iter(runner, batch_idx, mode)
        if mode != 'train':
            return tag, line
        for double, kept in (('base_lr', 'lr'), ('data_time', 'data_wait')):
            if kept in tag and double in tag:
                del tag[double]
                line = re.sub(rf'\b{double}: \S+\s+', '', line)
        share = 100 * (runner.iter + 1) / runner.max_iters
        return tag, re.sub(r'^(\w+\(train\)\s*(?:\[[^\]]*\])+)', rf'\1 {share:5.1f} %', line)
