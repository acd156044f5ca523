"""The count of a data set's bad images, which other images replace."""

from typing import Any, Callable, List, Optional, Sequence

import torch

from ..utils.errors import BadImageError, ConfigError, too_many_bad
from .files import shown

BAD_SHARE = 0.01
"""Share of a detector's training images that may be bad."""


def check_share(share: float) -> float:
    """Return a ``max_bad_share``.

    Raises:
        ConfigError: it is none.
    """
    if not 0 <= share < 1:
        raise ConfigError(f'max_bad_share must be 0 or more and below 1, got {share}.')
    return share


def too_many(bad: Sequence[str], total: int, most: float, why: str = '') -> BadImageError:
    """Return the error that lists the bad images (the first 50) of a set with more of them than the share ``most``."""
    more = f' and {len(bad) - 50} more' if len(bad) > 50 else ''
    return BadImageError(
        f'{len(bad)} of {total} images are bad, above max_bad_share={most:g}: {", ".join(map(shown, bad[:50]))}{more}; '
        'fix or remove them (odis-mm verify checks a whole data set and writes a clean annotation file)'
        f'{why}.'
    )


class CountsBadImages:
    """Part of a data set that knows which of its images are bad; ``BadImageHook`` tells them in the log.

    Attributes:
        max_bad_share: Share of the images that may be bad, and of three or more at least one; 0: none.
        bad: 1 for bad images, uint8 [images], in memory that the loader's workers share; None: none may be bad.
    """

    max_bad_share: float
    bad: Optional[torch.Tensor] = None
    get_data_info: Callable[[int], Any]
    __len__: Callable[..., int]

    def start_counting(self) -> None:
        """Begin with no bad image; before workers start."""
        self.bad = torch.zeros(len(self), dtype=torch.uint8).share_memory_() if self.max_bad_share else None

    def count_bad(self, index: int, error: BadImageError) -> None:
        """Count an image; see :meth:`check_bad_share`."""
        self.bad[index] = 1
        self.check_bad_share(f'; the last: {str(error).rstrip(".")}')

    def bad_images(self) -> List[str]:
        """Return the paths of the bad images that were met so far, by the workers of this process."""
        found = [] if self.bad is None else self.bad.nonzero().flatten().tolist()
        return [self.get_data_info(index)['img_path'] for index in found]

    def check_bad_share(self, why: str = '') -> None:
        """Raise BadImageError with the list (its first 50) if more images are bad than `max_bad_share` allows."""
        count = 0 if self.bad is None else int(self.bad.sum())
        if too_many_bad(count, len(self), self.max_bad_share):
            # a worker's error reaches the user as one text
            raise too_many(self.bad_images(), len(self), self.max_bad_share, why) from None
