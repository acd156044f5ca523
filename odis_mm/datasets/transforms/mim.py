"""Masks of masked image modelling, in blocks (BEiT, arXiv 2106.08254, algorithm 1; ratios as in iBOT)."""

import math

import numpy as np
from mmcv.transforms import BaseTransform
from mmpretrain.registry import TRANSFORMS

from ...utils.errors import ConfigError


def draw_blocks(
    rng: np.random.Generator, rows: int, cols: int, ratio: float, aspect: float, attempts: int
) -> np.ndarray:
    """Return a mask bool [rows, cols] of at most ``ratio * rows * cols`` patches, made of rectangles.

    A block has between ``(min(rows, cols) // 3) ** 2`` and all the patches that are still to be masked, with
    log-uniform aspect in (``aspect``, 1 / ``aspect``); it is kept if it fits and adds something. Ends when ``attempts``
    draws in a row fail.
    """
    mask = np.zeros((rows, cols), bool)
    least, spread, left = (min(rows, cols) // 3) ** 2, math.log(aspect), ratio * rows * cols
    while left >= 1:
        for area, stretch, top, start in rng.random((attempts, 4)).tolist():
            area, stretch = least + (left - least) * area, math.exp(spread * (2 * stretch - 1))
            h, w = round(math.sqrt(area * stretch)), round(math.sqrt(area / stretch))
            if not (0 < h < rows and 0 < w < cols):
                continue
            top, start = int(top * (rows - h + 1)), int(start * (cols - w + 1))
            block = mask[top : top + h, start : start + w]
            new = block.size - np.count_nonzero(block)
            if 0 < new <= left:
                block[:] = True
                left -= new
                break
        else:
            break
    return mask


@TRANSFORMS.register_module()
class BlockMasks(BaseTransform):
    """Masks for the global views: ratio 0 with ``skip_prob``, else from U(``ratio_mean`` +- ``ratio_spread``).

    The ratio is drawn anew for every global view: as in iBOT, each view is an image of its own here.

    Args:
        aspect: Least height / width of a block; the largest is its inverse.
        attempts: Draws of a block until one fits.

    Reads ``patch_masks``, ``view_roles``, ``rng``; adds ``mim_masks``, a list of bool [rows, columns] of the global
    views.

    Raises:
        ConfigError: ratios outside [0, 1], or an aspect outside (0, 1].
    """

    def __init__(
        self,
        ratio_mean: float = 0.3,
        ratio_spread: float = 0.2,
        skip_prob: float = 0.5,
        aspect: float = 0.3,
        attempts: int = 10,
    ):
        if not 0 <= ratio_mean - ratio_spread <= ratio_mean + ratio_spread <= 1:
            raise ConfigError(f'ratio_mean={ratio_mean} +- ratio_spread={ratio_spread} must lie within 0 and 1')
        if not 0 < aspect <= 1:
            raise ConfigError(f'aspect={aspect} must lie in (0, 1]')
        self.low, self.high = ratio_mean - ratio_spread, ratio_mean + ratio_spread
        self.skip_prob, self.aspect, self.attempts = skip_prob, aspect, attempts

    def transform(self, results: dict) -> dict:
        rng, masks = results['rng'], []
        for role, grid in zip(results['view_roles'], results['patch_masks']):
            if role == 'global':
                skip, ratio = rng.random(2).tolist()
                ratio = 0 if skip < self.skip_prob else self.low + (self.high - self.low) * ratio
                masks.append(draw_blocks(rng, *grid.shape, ratio, self.aspect, self.attempts))
        results['mim_masks'] = masks
        return results
