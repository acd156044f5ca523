"""Views whose pairs overlap, each turned by quarter turns (GTSA, arXiv 2304.08014)."""

from typing import Sequence, Tuple

import numpy as np
from mmcv.transforms import BaseTransform
from mmpretrain.registry import TRANSFORMS

from ...structures import View
from ...utils.errors import ConfigError
from .views import SampleViews


def shared_area(crops: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the square pixels that crops [..., 4] (x, y, w, h) share with each of n ``others`` [n, 4]: [..., n]."""
    a, b = crops[..., None, :], others
    side = np.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    return side.clip(0).prod(-1, dtype=np.float64)


@TRANSFORMS.register_module()
class SamplePairViews(BaseTransform):
    """Multi-crop in coordinates in which every view overlaps every global one, then quarter turns.

    A crop is redrawn until what it shares with each earlier global crop exceeds ``min_overlap`` of the image's area. Of
    a bounded number of draws the first that will do is taken; if none does, the one whose least overlap is largest (a
    thin image may not allow any). There are no flips: a turned view stays a turned view.

    Args:
        views: Groups of square views, globals first, each ``dict(role='global' | 'local', num, size, scale, ratio)``,
            as in :class:`SampleViews`.
        min_overlap: Least share of the image's area that two globals, and a local and a global, have in common (paper:
            2 % and 1 %).
        tries: Draws of a crop, the first included. The paper's release draws without end.
        turns: Turn each view by r in {0, 90, 180, 270} degrees counter-clockwise, drawn uniformly; False: none.
        patch_size: Must divide the sizes.

    Reads ``height``, ``width``, ``rng``; adds ``views`` (list of :class:`View`) and ``view_roles`` (list of str).

    Raises:
        ConfigError: views with flips, of other groups, or not square where they are turned; shares outside [0, 1); no
            tries.
    """

    def __init__(
        self,
        views: Sequence[dict],
        min_overlap: Tuple[float, float] = (0.02, 0.01),
        tries: int = 50,
        turns: bool = True,
        patch_size: int = 16,
    ):
        if any(group.get('flip') for group in views):
            raise ConfigError(
                'SamplePairViews knows no flip, as the losses compare turned crops: remove flip from the views'
            )
        self.groups = [SampleViews.check_group({**group, 'flip': 0.0}, patch_size) for group in views]
        if [group['role'] for group in self.groups] not in (['global'], ['global', 'local']):
            raise ConfigError('views must be one group of globals and at most one of locals after it')
        for group in self.groups:
            if turns and group['size'][0] != group['size'][1]:
                raise ConfigError(
                    f'views of size {group["size"]} change their shape when turned: use square ones or turns=False'
                )
        if len(min_overlap) != 2 or not all(0 <= share < 1 for share in min_overlap):
            raise ConfigError(
                f'min_overlap={min_overlap} must be two shares of the image in [0, 1): between globals, local and '
                'global'
            )
        if tries < 1:
            raise ConfigError('tries counts the first draw too: it must be at least 1')
        self.min_overlap, self.tries, self.turns = min_overlap, tries, turns

    def transform(self, results: dict) -> dict:
        rng, height, width = results['rng'], results['height'], results['width']
        crops, roles, sizes = np.zeros((0, 4), np.int64), [], []
        for group, share in zip(self.groups, self.min_overlap):
            drawn = SampleViews.draw_crops(rng, group, self.tries, height, width)  # [num, tries, 4]
            if group['role'] == 'local':
                crops = np.concatenate([crops, self.pick(drawn, crops, share * height * width)])
            else:
                for tries in drawn:  # a global one has to meet those before it
                    crops = np.concatenate([crops, self.pick(tries[None], crops, share * height * width)])
            roles += [group['role']] * group['num']
            sizes += [group['size']] * group['num']
        turns = rng.integers(0, 4, len(crops)) if self.turns else np.zeros(len(crops), np.int64)
        views = [
            View(tuple(crop), size, False, turn) for crop, size, turn in zip(crops.tolist(), sizes, turns.tolist())
        ]
        results.update(views=views, view_roles=roles)
        return results

    @staticmethod
    def pick(drawn: np.ndarray, earlier: np.ndarray, least: float) -> np.ndarray:
        """Return one of each view's tries [n, tries, 4]: the first that shares more than ``least`` with all earlier,
        else the best."""
        overlap = shared_area(drawn, earlier).min(-1, initial=np.inf)  # [n, tries]
        good = overlap > least
        return drawn[np.arange(len(drawn)), np.where(good.any(1), good.argmax(1), overlap.argmax(1))]
