"""uint8 views to normalised tensors on the device."""

from typing import Sequence

import numpy as np
import torch
from mmengine.model import BaseDataPreprocessor
from mmpretrain.registry import MODELS

from ..utils.errors import ConfigError
from .device_photometric import apply_photometrics


@MODELS.register_module()
class ViewPreprocessor(BaseDataPreprocessor):
    """Moves a collated batch of views to the device and normalises there.

    Args:
        mean: Per channel (RGB), in 0..255.
        std: Per channel, in 0..255.
        non_blocking: Copy without waiting (pinned memory).

    Raises:
        ConfigError: a ``std`` that is not positive.
    """

    def __init__(
        self,
        mean: Sequence[float] = (123.675, 116.28, 103.53),
        std: Sequence[float] = (58.395, 57.12, 57.375),
        non_blocking: bool = True,
    ):
        super().__init__(non_blocking=non_blocking)
        self.register_buffer('mean', torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer('std', torch.tensor(std).view(-1, 1, 1), persistent=False)
        if np.min(std) <= 0:
            raise ConfigError(f'model.data_preprocessor.std must be above 0 in each channel, got {std}.')

    def forward(self, data: dict, training: bool = False) -> dict:
        """Normalise ``inputs``: uint8 [n, 3, H, W] or a list of such, one per resolution, to float32; ``data_samples``
        is moved along.

        Numbers of photometrics that the pipeline drew (``PhotometricViews(on_device=True)``) are applied before the
        normalisation, and taken out of ``data_samples``.
        """
        samples = data.get('data_samples')
        photometric = None
        if isinstance(samples, dict) and 'photometric' in samples:
            photometric = samples['photometric']  # stays in host memory, see apply_photometrics
            data = {**data, 'data_samples': {key: value for key, value in samples.items() if key != 'photometric'}}
        data = self.cast_data(data)
        inputs = data['inputs']
        views = inputs if isinstance(inputs, (list, tuple)) else [inputs]
        views = [x.float() for x in views]
        if photometric is not None:
            # a training step calls this under its autocast, which would take the products of colours in half precision
            with torch.autocast(views[0].device.type, enabled=False):
                views = [apply_photometrics(x, drawn) for x, drawn in zip(views, photometric)]
        views = [(x - self.mean) / self.std for x in views]
        return {**data, 'inputs': views if isinstance(inputs, (list, tuple)) else views[0]}
