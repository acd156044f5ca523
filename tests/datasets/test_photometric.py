"""The fast change of hue is the plain one."""

import cv2
import numpy as np

from odis_mm.datasets.transforms import photometric


def turned(img, shift):
    hsv = cv2.cvtColor(img, cv2.COLOR_RGB2HSV_FULL)
    table = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, 2)
    table[0, :, 0] = np.rint((np.arange(256) / 256 + shift) % 1 * 255)
    return cv2.cvtColor(cv2.LUT(hsv, table), cv2.COLOR_HSV2RGB_FULL)


def test_fast_hue_is_the_plain_one(synthetic_sample):
    img = synthetic_sample(seed=3)['img']
    for shift in (-0.45, -0.225, 0.0, 0.15, 0.225, 0.5):
        fast = photometric.hue(img, shift)
        difference = np.abs(fast.astype(int) - turned(img, shift))
        assert fast.dtype == np.uint8 and fast.shape == img.shape
        assert difference.max() <= 2 and difference.mean() < 0.1  # ties in its table
    assert np.abs(fast.astype(int) - img).mean() > 1
