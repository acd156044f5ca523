"""Frozen features of annotated objects: does the backbone tell their classes, before any detector is trained?"""
from typing import Tuple

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.dataset import BaseDataset
from torch import Tensor

from ..structures import View, box_patch_mask
from .knn import knn_accuracy


@torch.no_grad()
def region_features(backbone: torch.nn.Module, dataset: BaseDataset, preprocessor: torch.nn.Module, size: int,
                    batch_size: int = 64, max_objects: int = 10_000) -> Tuple[Tensor, Tensor, Tensor]:
    """Features of every annotated object, the whole image being in view.

    Args:
        backbone: An ``ObjectViT``, in evaluation mode.
        dataset: Images with objects and labels, with a pipeline that loads ``img``.
        preprocessor: ``ViewPreprocessor`` of the pretraining.
        size: Images are resized to size x size pixels.
        batch_size: Objects a forward pass.
        max_objects: Stop after so many.

    Returns:
        The [OBJ] token that sees the object's box only [n, D], the mean patch token within the box [n, D], labels [n].
    """
    device, patch = next(backbone.parameters()).device, backbone.patch_embed.projection.stride[0]
    tokens, pooled, labels = [], [], []
    images, masks = [], []

    def flush():
        if not images:
            return
        inputs = preprocessor(dict(inputs=torch.stack(images)))['inputs'].to(device)
        mask = torch.stack(masks).to(device)
        out = backbone(inputs, mask)[-1]  # [b, T, D]
        tokens.append(out[:, backbone.object_slice].mean(1).cpu())
        patches = out[:, backbone.num_leading_tokens:]
        weight = mask.unsqueeze(-1).float()
        pooled.append(((patches * weight).sum(1) / weight.sum(1).clamp(min=1)).cpu())
        images.clear()
        masks.clear()

    for index in range(len(dataset)):
        sample = dataset[index]
        if not len(sample['bboxes']) or sample['img'] is None:
            continue
        height, width = sample['img'].shape[:2]
        pixels = torch.from_numpy(np.ascontiguousarray(sample['img'])).permute(2, 0, 1)
        if (height, width) != (size, size):
            pixels = F.interpolate(pixels[None], (size, size), mode='bicubic', antialias=True)[0]
        view = View(crop=(0, 0, width, height), size=(size, size))
        for box, label in zip(np.asarray(sample['bboxes'], np.float64), sample['labels']):
            images.append(pixels)
            masks.append(torch.from_numpy(np.asarray(box_patch_mask(box, view, patch))).flatten())
            labels.append(int(label))
            if len(images) == batch_size:
                flush()
        if len(labels) >= max_objects:
            break
    flush()
    if not labels:
        raise ValueError('no labelled object in the dataset: region features need boxes and category ids.')
    return torch.cat(tokens), torch.cat(pooled), torch.tensor(labels)


def region_knn(backbone: torch.nn.Module, train: BaseDataset, val: BaseDataset, preprocessor: torch.nn.Module, size: int,
               k: int = 20, **kwargs) -> dict:
    """Class accuracy of val objects by their nearest train objects, in percent: ``object_token`` and ``box_pool``."""
    backbone.eval()
    *train_features, train_labels = region_features(backbone, train, preprocessor, size, **kwargs)
    *val_features, val_labels = region_features(backbone, val, preprocessor, size, **kwargs)
    return {name: next(iter(knn_accuracy(a, train_labels, b, val_labels, ks=(k, )).values()))
            for name, a, b in zip(('object_token', 'box_pool'), train_features, val_features)}
