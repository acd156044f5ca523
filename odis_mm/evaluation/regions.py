"""A proxy for detection, read off a frozen backbone: does it tell objects apart, from background, and pixel by pixel?

Three questions to annotated images (a COCO-style json), answered without any training by gradient descent, in seconds
to minutes, the same in every run and on any number of ranks:

* **class**: the class of a val object by a vote of its nearest train objects (weighted k-NN), from the masked [OBJ]
  token and from the box pooled from the dense map;
* **object or background**: a linear classifier between pooled objects and pooled background boxes of the same sizes,
  fitted in closed form on train images; its area under the ROC curve on val images;
* **mask**: a linear classifier of patches, fitted the same way; the mean IoU of object and background on val patches.

Crowd regions are neither objects nor background.
"""

from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.dist import all_gather_object, get_dist_info
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.ops import roi_align

from ..datasets.objects import ObjectDataset
from ..datasets.segmentation import mask_of
from ..structures import View, box_patch_mask, boxes_to_view, mask_area_in_crops, summed_area
from ..utils.errors import ConfigError
from .frozen import FrozenBackbone, batches, resize, subset
from .knn import knn_accuracy


class RegionImages(Dataset):
    """Annotated images, resized to squares, with their objects and background boxes of the same sizes.

    Args:
        images: Items with ``img`` uint8 [H, W, 3], ``bboxes`` [n, 4] in its pixels, ``labels`` and, if there are any,
            ``masks`` and ``crowd``, such as ``ObjectDataset`` with ``LoadObjectImage``.
        sizes: Sides of the squares, one per scale.
        patch: Side of a patch, for the masks of [OBJ]; None: no such masks.
        most: At most so many images, evenly spread; None: all.
        per_image: At most so many objects of an image, evenly spread.

    Items: ``pixels`` (one uint8 [3, s, s] a scale), ``boxes`` and ``background`` float [n, 4], [m, 4] as shares of the
    image, ``labels``, ``masks`` (one bool [n, patches] a scale), ``area`` bool [H, W], the pixels of all objects, and
    ``taken`` bool [H, W], those and the pixels of crowd regions.
    """

    def __init__(
        self,
        images: Sequence[dict],
        sizes: Sequence[int],
        patch: Optional[int] = None,
        most: Optional[int] = None,
        per_image: int = 10,
    ):
        self.images, self.sizes, self.patch, self.per_image = images, tuple(sizes), patch, per_image
        self.index = subset(len(images), most)

    def __len__(self) -> int:
        return len(self.index)

    def labels(self) -> List[int]:
        """Return the classes of all objects of the items, without reading an image."""
        infos = (self.images.get_data_info(index) for index in self.index)
        return [int(info['labels'][i]) for info in infos for i in self._kept(info)]

    def __getitem__(self, item: int) -> dict:
        sample = self.images[self.index[item]]
        height, width = sample['img'].shape[:2]
        keep = self._kept(sample)
        boxes = np.asarray(sample['bboxes'], np.float64).reshape(-1, 4)[keep]
        sized = {**sample, 'height': height, 'width': width}
        area = object_area(sized)
        taken = area | object_area(sized, crowd=True)
        pixels = torch.from_numpy(np.ascontiguousarray(sample['img'])).permute(2, 0, 1)
        masks = []
        for size in self.sizes if self.patch else ():
            view = View((0, 0, width, height), (size, size))
            masks.append(torch.from_numpy(np.asarray(box_patch_mask(boxes, view, self.patch))).flatten(1))
        unit = View((0, 0, width, height), (1, 1))
        return dict(
            item=item,
            pixels=[resize(pixels, (size, size)) for size in self.sizes],
            boxes=torch.from_numpy(boxes_to_view(boxes, unit)).float(),
            background=torch.from_numpy(boxes_to_view(background_boxes(boxes, taken), unit)).float(),
            labels=torch.as_tensor(np.asarray(sample['labels'])[keep], dtype=torch.long),
            masks=masks,
            area=torch.from_numpy(area),
            taken=torch.from_numpy(taken),
        )

    def _kept(self, sample: dict) -> np.ndarray:
        objects = _rows(sample, crowd=False)
        return objects[subset(len(objects), self.per_image)]


def _rows(sample: dict, crowd: bool) -> np.ndarray:
    return np.flatnonzero(np.asarray(sample.get('crowd', np.zeros(len(sample['bboxes']), bool))) == crowd)


def object_area(sample: dict, crowd: bool = False) -> np.ndarray:
    """Return the pixels that belong to any object (or to any ``crowd`` region), bool [height, width]: of its mask if
    there is one, else of its box."""
    area = np.zeros((sample['height'], sample['width']), bool)
    rows = _rows(sample, crowd)
    if sample.get('masks'):
        for i in rows.tolist():
            area |= mask_of(sample, i)
    else:
        for x1, y1, x2, y2 in np.rint(sample['bboxes'])[rows].astype(int).tolist():
            area[y1:y2, x1:x2] = True
    return area


def background_boxes(boxes: np.ndarray, area: np.ndarray, places: int = 7, most_covered: float = 0.1) -> np.ndarray:
    """Return for each box one of its size where objects cover the least: of ``places`` x ``places`` positions the first
    best.

    Args:
        boxes: [n, 4], within the image.
        area: bool [H, W], the pixels of objects and crowd regions.
        most_covered: A place that objects cover to a larger share is no background; the box is left out.

    Returns:
        [m, 4], m <= n.
    """
    table, (height, width) = summed_area(area), area.shape
    found = []
    for w, h in np.rint(boxes[:, 2:] - boxes[:, :2]).astype(int).clip(1).tolist():
        xs, ys = (np.rint(np.linspace(0, max(room, 0), places)).astype(int) for room in (width - w, height - h))
        crops = np.stack(
            [*(grid.ravel() for grid in np.meshgrid(xs, ys)), np.full(places**2, w), np.full(places**2, h)], 1
        )
        covered = mask_area_in_crops(table, crops) / (w * h)
        best = int(covered.argmin())
        if covered[best] <= most_covered:
            found.append([crops[best, 0], crops[best, 1], crops[best, 0] + w, crops[best, 1] + h])
    return np.asarray(found, np.float64).reshape(-1, 4)


@dataclass
class Regions:
    """Frozen features of annotated images, in their order.

    Attributes:
        token: The [OBJ] token that sees the object's box only [n, D]; None for a backbone that has none.
        pooled: The object's box from the dense map [n, D].
        labels: int64 [n].
        background: Background boxes from the dense map [m, D].
        patches: Cells of the dense map [p, D], those left out that only with crowd regions are covered by half.
        inside: bool [p], cells that objects cover by half or more.
    """

    token: Optional[Tensor]
    pooled: Tensor
    labels: Tensor
    background: Tensor
    patches: Tensor
    inside: Tensor


def pool_boxes(map_: Tensor, boxes: Sequence[Tensor], cells: int = 7) -> Tensor:
    """Return the mean over RoIAlign's cells (aligned) of boxes [n_b, 4], shares of the image, from maps [B, D, rows,
    columns]: [sum n_b, D]."""
    rows, columns = map_.shape[2:]
    scale = torch.tensor([columns, rows, columns, rows], dtype=map_.dtype, device=map_.device)
    return roi_align(map_, [box.to(map_) * scale for box in boxes], cells, 1.0, sampling_ratio=2, aligned=True).mean(
        (2, 3)
    )


def region_features(
    frozen: FrozenBackbone, images: RegionImages, batch_size: int = 64, num_workers: int = 0, max_patches: int = 50_000
) -> Regions:
    """Return all features at once, on every rank. With several scales those of a region are l2-normalised and put side
    by side; patches are of the last.

    Args:
        batch_size: Images per forward pass, which reads the tokens of their objects, too.
        num_workers: Processes per rank that decode.
        max_patches: Cells of the map to keep, evenly spread over images.

    Raises:
        ConfigError: no object with a class, or a size that patches do not divide.
    """
    for size in images.sizes:
        frozen.check_size(size)
    records = []
    for batch in batches(images, batch_size, num_workers):
        records += _batch_records(frozen, batch, max_patches // max(len(images), 1))
    if get_dist_info()[1] > 1:
        records = sorted(
            (record for part in all_gather_object(records) for record in part), key=lambda record: record['item']
        )

    def together(key: str) -> Tensor:
        return torch.cat([record[key] for record in records])

    labels = together('labels') if records else torch.zeros(0)
    bare = int((labels < 0).sum())
    if bare == len(labels):
        raise ConfigError('no labelled object in the dataset: region features need boxes and category ids.')
    if bare:
        raise ConfigError(
            f'{bare} of {len(labels)} objects have no category that the annotations list: list it, or remove them.'
        )
    token = together('token') if records[0]['token'] is not None else None
    return Regions(token, *(together(key) for key in ('pooled', 'labels', 'background', 'patches', 'inside')))


def _batch_records(frozen: FrozenBackbone, batch: Dict[str, list], patches_per_image: int) -> List[dict]:
    counts = [len(boxes) for boxes in batch['boxes']]
    spare = [len(boxes) for boxes in batch['background']]
    pooled, background, tokens = [], [], []
    for scale in range(len(batch['pixels'][0])):
        pixels = torch.stack([images[scale] for images in batch['pixels']])
        if frozen.can_mask and batch['masks'][0]:
            out, token = frozen.read_objects(pixels, [image[scale] for image in batch['masks']])
            tokens.append(token.cpu())
        else:
            out = frozen(pixels)
        pooled.append(pool_boxes(out.map, batch['boxes']).cpu())
        background.append(pool_boxes(out.map, batch['background']).cpu())
    pooled, background = (_side_by_side(parts).split(sizes) for parts, sizes in ((pooled, counts), (background, spare)))
    tokens = _side_by_side(tokens).split(counts) if tokens else [None] * len(counts)
    cells = out.map.flatten(2).mT.cpu()  # [B, rows * columns, D]
    keep = torch.tensor(subset(cells.shape[1], max(patches_per_image, 1)))
    inside, taken = (
        [F.adaptive_avg_pool2d(area[None].float(), out.map.shape[2:]).flatten() >= 0.5 for area in batch[key]]
        for key in ('area', 'taken')
    )
    records = []
    for i, item in enumerate(batch['item']):
        at = (keep + item) % cells.shape[1]  # of each image others: the same ones might all lie in one column
        at = at[inside[i][at] | ~taken[i][at]]
        records.append(
            dict(
                item=item,
                token=tokens[i],
                pooled=pooled[i],
                labels=batch['labels'][i],
                background=background[i],
                patches=cells[i][at],
                inside=inside[i][at],
            )
        )
    return records


def _side_by_side(parts: List[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat([F.normalize(part, dim=-1) for part in parts], dim=-1)


def fit_linear(features: Tensor, positive: Tensor, ridge: float = 1e-2):
    """Return the linear classifier that least squares gives: targets +1 and -1, both classes of equal weight,
    standardised features, ridge.

    Args:
        features: [n, D].
        positive: bool [n].
        ridge: Of the mean squared error.

    Returns:
        A pipeline of scikit-learn's ``StandardScaler`` and ``RidgeClassifier``.
    """
    from sklearn.linear_model import RidgeClassifier  # a second that only evaluation has to wait
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = RidgeClassifier(alpha=ridge * len(features), class_weight='balanced')
    return make_pipeline(StandardScaler(), classifier).fit(features.double().numpy(), positive.numpy())


def _scores(classifier, features: Tensor) -> Tensor:
    return torch.from_numpy(classifier.decision_function(features.double().numpy()))


def mean_iou(predicted: Tensor, inside: Tensor) -> float:
    """Return the mean of the IoU of objects and of background, in percent."""
    both = [
        ((predicted == side) & (inside == side)).sum() / ((predicted == side) | (inside == side)).sum().clamp(min=1)
        for side in (True, False)
    ]
    return 100 * float(sum(both)) / 2


def region_metrics(train: Regions, val: Regions, k: int = 20) -> Dict[str, float]:
    """Return the proxy, in percent: ``object_token`` (if there is one) and ``box_pool`` (class accuracy),
    ``object_auc``, ``mask_miou``; the last two only where both sides have background, and cells within and outside of
    objects."""
    metrics = {}
    for name, ours, theirs in (('object_token', train.token, val.token), ('box_pool', train.pooled, val.pooled)):
        if ours is not None:
            metrics[name] = next(iter(knn_accuracy(ours, train.labels, theirs, val.labels, ks=(k,)).values()))
    if min(len(train.background), len(val.background)):
        from sklearn.metrics import roc_auc_score

        both = [torch.cat((part.pooled, part.background)) for part in (train, val)]
        positive = [torch.arange(len(x)) < len(part.pooled) for x, part in zip(both, (train, val))]
        scores = _scores(fit_linear(both[0], positive[0]), both[1])
        metrics['object_auc'] = 100 * float(roc_auc_score(positive[1].numpy(), scores.numpy()))
    if all(0 < int(part.inside.sum()) < len(part.inside) for part in (train, val)):
        classifier = fit_linear(train.patches, train.inside)
        ours, theirs = (_scores(classifier, part.patches) for part in (train, val))
        cuts = ours.sort().values[[i * (len(ours) - 1) // 100 for i in range(1, 100)]]  # the best of 99 quantiles
        cut = max(cuts.tolist(), key=lambda at: mean_iou(ours > at, train.inside))
        metrics['mask_miou'] = mean_iou(theirs > cut, val.inside)
    return metrics


def region_proxy(
    frozen: FrozenBackbone, train: RegionImages, val: RegionImages, k: int = 20, **kwargs
) -> Dict[str, float]:
    """Return :func:`region_metrics` of val images by train images; ``kwargs`` go to :func:`region_features`.

    Raises:
        ConfigError: the two sets name different classes, or what :func:`region_features` raises.
    """
    classes = [tuple(getattr(part.images, 'metainfo', {}).get('classes') or ()) for part in (train, val)]
    if classes[0] != classes[1]:
        raise ConfigError(
            f'train and val annotations name different classes ({len(classes[0])} and {len(classes[1])}): give both '
            'files the same categories.'
        )
    return region_metrics(region_features(frozen, train, **kwargs), region_features(frozen, val, **kwargs), k)


def region_split(
    frozen: FrozenBackbone,
    data_root: str,
    ann_files: Sequence[str],
    images: Sequence[str],
    scales: Sequence[int] = (224,),
    most: Sequence[Optional[int]] = (None, None),
    per_image: int = 10,
) -> List[RegionImages]:
    """Return train and val images below ``data_root``, each from a json and a folder of images."""
    patch, parts = frozen.patch if frozen.can_mask else None, []
    for ann_file, prefix, count in zip(ann_files, images, most):
        dataset = ObjectDataset(
            data_root=data_root,
            ann_file=ann_file,
            data_prefix=prefix,
            with_crowd=True,
            keep_empty=False,
            pipeline=[dict(type='LoadObjectImage', **frozen.reading)],
        )
        chosen = [i for i in range(len(dataset)) if not dataset.get_data_info(i)['crowd'].all()]
        if not chosen:
            raise ConfigError(f'{ann_file} has crowd regions alone: region features need objects.')
        dataset.get_subset_(chosen)
        parts.append(RegionImages(dataset, scales, patch, count, per_image))
    return parts


def region_knn(
    backbone: torch.nn.Module,
    train: Sequence[dict],
    val: Sequence[dict],
    preprocessor: torch.nn.Module,
    size: int,
    k: int = 20,
    **kwargs,
) -> Dict[str, float]:
    """Return :func:`region_proxy` of a module and two sets of images, normalised as ``preprocessor`` does."""
    frozen = FrozenBackbone(backbone, preprocessor.mean, preprocessor.std)
    patch = frozen.patch if frozen.can_mask else None
    return region_proxy(frozen, RegionImages(train, (size,), patch), RegionImages(val, (size,), patch), k, **kwargs)
