"""Photometrics of views on the device: the numbers that ``PhotometricViews`` draws, applied to whole batches in
float."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..datasets.transforms.photometric import COLUMNS, blur_kernel

_GREY = (0.299, 0.587, 0.114)  # of red, green, blue (ITU-R BT.601), as OpenCV has it
_JITTER, _GRAY, _BLUR, _SOLARIZE, _FACTORS, _ORDER, _SIGMA = COLUMNS.values()


def _gray(views: Tensor) -> Tensor:
    return (torch.einsum('nchw,c->nhw', views, views.new_tensor(_GREY)) + 0.5).floor()[:, None]


def _mean_gray(views: Tensor) -> Tensor:
    grey = _gray(views) if views.shape[1] == 3 else views
    return (grey.mean((1, 2, 3), keepdim=True) + 0.5).floor()


def _toward(views: Tensor, origin, factor: Tensor) -> Tensor:
    """PIL's blend: whole numbers, cut off and not rounded, as :mod:`..datasets.transforms.photometric` has them."""
    return (origin + factor[:, None, None, None] * (views - origin)).clamp(0, 255).floor()


def turn_hue(views: Tensor, shift: Tensor) -> Tensor:
    """Return RGB [n, 3, h, w] in 0..255 with their hues turned by ``shift`` [n] of the circle; HSV's value and
    saturation stay."""
    value, place = views.max(1)
    chroma = value - views.amin(1)
    red, green, blue = views.unbind(1)
    scale = 1 / chroma.clamp(min=1e-6)
    sector = torch.where(
        place == 0, (green - blue) * scale, torch.where(place == 1, 2 + (blue - red) * scale, 4 + (red - green) * scale)
    )
    sector = sector + 6 * shift[:, None, None]
    k = (sector[:, None] + sector.new_tensor((5.0, 3.0, 1.0))[:, None, None]) % 6  # [n, 3, h, w]
    return value[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp(0, 1)


def blur_views(views: Tensor, sigma: Tensor) -> Tensor:
    """Blur [n, C, h, w] with a ``sigma`` [n] of each, in HOST memory, by the kernels of ``blur_kernel``; edges
    replicated."""
    n, channels = views.shape[:2]
    kernels = [blur_kernel(float(s)) for s in sigma]
    reach = max(len(kernel) for kernel in kernels) // 2
    padded = torch.from_numpy(np.stack([np.pad(kernel, reach - len(kernel) // 2) for kernel in kernels]))
    padded = padded.to(views.dtype)
    if views.is_cuda:
        padded = padded.pin_memory()
    kernel = padded.to(views.device, non_blocking=True).repeat_interleave(channels, 0)[:, None]  # [n*C, 1, 2 reach + 1]
    x = F.pad(views.flatten(0, 1)[None], (reach,) * 4, mode='replicate')
    x = F.conv2d(x, kernel[:, :, None], groups=n * channels)
    return F.conv2d(x, kernel[..., None], groups=n * channels)[0].unflatten(0, (n, channels))


def apply_photometrics(views: Tensor, drawn: Tensor) -> Tensor:
    """Apply colour jitter, greyscale, blur and solarize to each view with its own numbers.

    Which view gets which step is decided on the host, so that no index of unknown length stalls the device's queue.

    Args:
        views: Float [n, C, h, w] in 0..255; what is about colours is left out unless C is 3.
        drawn: float32 [n, 13] in HOST memory, in the COLUMNS of ``PhotometricViews.pack``.

    Returns:
        [n, 3, h, w] in 0..255; hue and blur are not rounded.
    """
    pinned = views.is_cuda
    numbers = (drawn.pin_memory() if pinned else drawn).to(views.device, views.dtype, non_blocking=True)

    def chosen(flags: Tensor) -> Tensor:
        index = flags.nonzero().flatten()
        return (index.pin_memory() if pinned else index).to(views.device, non_blocking=True)

    views = views.clone()
    jitter, order, factors = drawn[:, _JITTER] > 0, drawn[:, _ORDER], numbers[:, _FACTORS]
    steps = (
        lambda x, f: _toward(x, 0.0, f),
        lambda x, f: _toward(x, _mean_gray(x), f),
        lambda x, f: _toward(x, _gray(x), f),
        turn_hue,
    )
    coloured = views.shape[1] == 3
    for turn in range(4):
        for j, step in enumerate(steps if coloured else steps[:2]):
            index = chosen(jitter & (order[:, turn] == j))
            if len(index):
                views[index] = step(views[index], factors[index, j])
    index = chosen((drawn[:, _GRAY] > 0) & coloured)
    if len(index):
        views[index] = _gray(views[index]).expand(-1, 3, -1, -1)
    index = chosen(drawn[:, _BLUR] > 0)
    if len(index):
        views[index] = blur_views(views[index], drawn[drawn[:, _BLUR] > 0, _SIGMA])
    index = chosen(drawn[:, _SOLARIZE] > 0)
    if len(index):
        part = views[index]
        views[index] = torch.where(part < 127.5, part, 255 - part)  # 128 and more of the rounded values
    return views
