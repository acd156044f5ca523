"""From one image's views to a batch, view-major: index ``v * B + b``."""

from typing import List, Sequence

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.registry import FUNCTIONS
from mmpretrain.registry import TRANSFORMS

from ...structures import stack_views
from ...utils.errors import ConfigError


def _groups(results: dict) -> List[List[int]]:
    """Indices of views that share role and pixel size, in the order of their first appearance: globals first."""
    groups = {}
    for i, (role, pixels) in enumerate(zip(results['view_roles'], results['pixels'])):
        groups.setdefault((role, pixels.shape), []).append(i)
    return list(groups.values())


@TRANSFORMS.register_module()
class PackViews(BaseTransform):
    """The views of one image as tensors.

    Returns:
        dict: ``inputs``: per resolution (globals first) uint8 [V_r, 3, h, w], laid out channels last, as rendered.
        ``data_samples``: ``crop`` float32 [V, 4] (x, y, w, h in pixels of the image), ``view_size`` int64 [V, 2] (h,
        w), ``flip`` bool [V], ``rot90`` int64 [V], ``image_size`` int64 [2] (h, w), ``img_id`` int64 []; if the views
        were sampled for an object, ``object_mask`` per resolution bool [V_r, N_r] (patches row by row) and
        ``object_visible`` bool [V]; ``mim_mask`` bool [G, N] if masks were drawn; ``other_masks`` bool [G, n, N] of
        further objects; ``photometric`` per resolution float32 [V_r, 13] if the device is to apply them.
    """

    def transform(self, results: dict) -> dict:
        groups = _groups(results)
        if [i for group in groups for i in group] != list(range(len(results['pixels']))):
            raise ConfigError('local views of one size must stand in one group of SampleViews: merge the groups')
        pixels, geometry = results['pixels'], stack_views(results['views'])
        samples = dict(
            crop=torch.from_numpy(geometry.crop.astype(np.float32)),
            view_size=torch.from_numpy(geometry.size),
            flip=torch.from_numpy(geometry.flip),
            rot90=torch.from_numpy(geometry.rot90),
            image_size=torch.tensor([results['height'], results['width']]),
            img_id=torch.tensor(int(results['img_id'])),
        )
        if 'patch_masks' in results:
            masks = results['patch_masks']
            samples['object_mask'] = [
                torch.from_numpy(np.stack([masks[i].reshape(-1) for i in group])) for group in groups
            ]
            samples['object_visible'] = torch.tensor(results['object_visible'])
        if 'other_masks' in results:
            samples['other_masks'] = torch.from_numpy(results['other_masks']).flatten(2)
        if 'photometric' in results:
            samples['photometric'] = [torch.from_numpy(results['photometric'][group]) for group in groups]
        if 'mim_masks' in results:
            samples['mim_mask'] = torch.from_numpy(np.stack([mask.reshape(-1) for mask in results['mim_masks']]))
        inputs = [torch.from_numpy(np.stack([pixels[i] for i in group])).permute(0, 3, 1, 2) for group in groups]
        return dict(inputs=inputs, data_samples=samples)


def _view_major(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """B tensors [V, ...] as one [V * B, ...], view by view."""
    return torch.stack(list(parts), 1).flatten(0, 1)


def mask_positions(mask: torch.Tensor) -> dict:
    """Return where the masked patches are, and their weights in the loss, of masks bool [G * B, N].

    Found in the loader, in host memory: on the device, an index of unknown length would stall the queue.

    Returns:
        dict: ``mim_index`` int64 [M] into the flattened masks; ``mim_weight`` float32 [M], 1 / (masked patches of its
            view * G * B).
    """
    index = mask.flatten().nonzero().flatten()
    weight = 1 / (mask.sum(1, keepdim=True).clamp(min=1) * len(mask))
    return dict(mim_index=index, mim_weight=weight.expand_as(mask).flatten()[index])


@FUNCTIONS.register_module()
def collate_views(batch: Sequence[dict]) -> dict:
    """Return a batch of packed images.

    Returns:
        dict: ``inputs``: per resolution uint8 [V_r * B, 3, h, w] (index ``v * B + b``, channels last in memory).
        ``data_samples``: ``object_mask`` per resolution bool [V_r * B, N_r], ``photometric`` likewise [V_r * B, 13],
        ``mim_mask`` bool [G * B, N] with :func:`mask_positions`, ``other_masks`` bool [G * B, n, N]; the rest with a
        leading B.
    """
    inputs = [
        _view_major([views.permute(0, 2, 3, 1) for views in parts]).permute(0, 3, 1, 2)  # whole pixels are copied
        for parts in zip(*(item['inputs'] for item in batch))
    ]
    samples = {}
    for key in batch[0]['data_samples']:
        values = [item['data_samples'][key] for item in batch]
        if key in ('object_mask', 'photometric'):
            samples[key] = [_view_major(parts) for parts in zip(*values)]
        else:
            samples[key] = _view_major(values) if key in ('mim_mask', 'other_masks') else torch.stack(values)
    if 'mim_mask' in samples:
        samples.update(mask_positions(samples['mim_mask']))
    return dict(inputs=inputs, data_samples=samples)
