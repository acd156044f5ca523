"""The evaluation of detectors whose figures something else reports; imported by the configs that name it."""

import io
import logging
from contextlib import redirect_stdout
from typing import Dict

from mmdet.evaluation import CocoMetric
from mmdet.registry import METRICS
from mmengine.logging import MMLogger


@METRICS.register_module()
class UntabledCocoMetric(CocoMetric):
    """mmdet's ``CocoMetric`` without its tables, which show the same figures three times: that of the classes, that of
    pycocotools, and a line to be copied. The runner logs the figures after it."""

    def compute_metrics(self, results: list) -> Dict[str, float]:
        # the AP of a class has one name for boxes and masks: the last metric's stays
        self.metrics = sorted(self.metrics, key=lambda metric: metric == 'bbox')
        logger = MMLogger.get_current_instance()
        level = logger.level
        logger.setLevel(max(level, logging.WARNING))
        try:
            with redirect_stdout(io.StringIO()):  # pycocotools prints
                return super().compute_metrics(results)
        finally:
            logger.setLevel(level)
