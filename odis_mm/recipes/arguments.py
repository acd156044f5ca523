"""Arguments that pretraining and detectors share."""

from typing import Any, Dict, Optional

from ..utils.errors import ConfigError


def check_arguments(batch: Optional[int] = None, seed: int = 0, options: Optional[Dict[str, Any]] = None) -> None:
    """Refuse what no run can be made with.

    Raises:
        ConfigError: a batch of no image, a seed that numpy does not take, or an option that sets the length.
    """
    if batch is not None and batch < 1:
        raise ConfigError(f'batch must be 1 or more, got {batch}.')
    if not 0 <= seed < 1 << 32:
        raise ConfigError(f'seed must be 0 or more and below 2**32, got {seed}.')
    whole = (options or {}).get('train_cfg')
    for name in ('max_epochs', 'max_iters'):
        # the schedule is that of the steps: of a longer run, the rest would pass at the least rate
        if f'train_cfg.{name}' in (options or {}) or (isinstance(whole, dict) and name in whole):
            raise ConfigError(
                f'--cfg-options train_cfg.{name} would leave the schedule at another length: set the length by --steps '
                '(steps=), which the schedule follows.'
            )
