"""Scalars of the log that are read from the device when they are asked for, not before."""

from typing import List

import numpy as np
import torch
from mmengine.logging import HistoryBuffer, MessageHub
from torch import Tensor


class DeferredHistory(HistoryBuffer):
    """A history of scalars whose newest values may still be on the device; reading it waits for all of them at once.

    In checkpoints it is a plain ``HistoryBuffer``.
    """

    def __init__(self, *args, **kwargs):
        self.pending: List[Tensor] = []
        super().__init__(*args, **kwargs)

    def append(self, value: Tensor) -> None:
        """Add a tensor of one number without reading it."""
        self.pending.append(value.detach())

    @property
    def _log_history(self) -> np.ndarray:  # every method of the base class reads this first
        if self.pending:
            values = torch.stack([value.float().reshape(()) for value in self.pending]).tolist()
            self.pending = []
            self._values = np.append(self._values, values)[-self.max_length :]
            counts = np.append(self._count_history, np.ones(len(values), self._count_history.dtype))
            self._count_history = counts[-self.max_length :]
        return self._values

    @_log_history.setter
    def _log_history(self, values: np.ndarray) -> None:
        self._values = values

    @property
    def data(self):
        return self._log_history, self._count_history  # in this order: reading the first completes the second

    def __reduce__(self):
        return HistoryBuffer, (*self.data, self.max_length)

    def __deepcopy__(self, memo) -> HistoryBuffer:
        return HistoryBuffer(*self.data, self.max_length)


def defer_scalar(hub: MessageHub, key: str, value: Tensor) -> None:
    """Do ``hub.update_scalar(key, value)`` without waiting for the device, except in the first call for a key."""
    history = hub.log_scalars.get(key)
    if isinstance(history, DeferredHistory):
        history.append(value)
        return
    hub.update_scalar(key, value)
    hub.log_scalars[key] = DeferredHistory(*hub.log_scalars[key].data)
