"""Arguments that pretraining and detectors share."""

from typing import Optional

from ..utils.errors import ConfigError


def check_arguments(batch: Optional[int] = None, seed: int = 0) -> None:
    """Refuse what no run can be made with.

    Raises:
        ConfigError: a batch of no image, or a seed that numpy does not take.
    """
    if batch is not None and batch < 1:
        raise ConfigError(f'batch must be 1 or more, got {batch}.')
    if not 0 <= seed < 1 << 32:
        raise ConfigError(f'seed must be 0 or more and below 2**32, got {seed}.')
