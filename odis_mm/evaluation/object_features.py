"""Features of objects that someone points at: boxes or masks in, one vector an object out."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Union

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..datasets.image_io import read_image
from ..datasets.objects import ObjectDataset
from ..datasets.segmentation import mask_of
from ..structures import View, box_patch_mask, boxes_to_view, mask_patch_mask, summed_area
from ..utils.errors import ConfigError
from ..utils.files import atomic_write
from ..utils.scopes import scope_of
from .frozen import FrozenBackbone, batches, frozen_from, resize, subset
from .regions import pool_boxes

Image = Union[str, Path, np.ndarray]
_SAME, _OTHER = '#0072b2', '#d55e00'  # blue and vermilion: apart for colour-blind eyes, too


@dataclass
class ObjectFeatures:
    """One row an object, images in their order, objects in the order given.

    Attributes:
        token: The [OBJ] token that sees the object only, float32 [n, D]; None for a backbone that has none (a ResNet).
            All objects of an image are read in one pass, in which the patches see the whole image's [OBJ].
        pooled: From the dense map of the whole image, float32 [n, D]: RoIAlign over a box, the mean of a mask's
            cells weighted by how much it covers of each.
        image: Which image, int64 [n].
        boxes: In pixels of the image, float32 [n, 4]; of a mask the box around it.
        labels: Of a data set's objects, int64 [n], -1: unknown; None for regions that were given.
    """

    token: Optional[Tensor]
    pooled: Tensor
    image: Tensor
    boxes: Tensor
    labels: Optional[Tensor] = None


@scope_of('mmpretrain')
def extract_object_features(
    model_or_checkpoint: Union[nn.Module, str, Path],
    images: Sequence[Image],
    boxes_or_masks: Sequence[np.ndarray],
    *,
    size: int = 224,
    batch_size: int = 64,
    heads: Optional[int] = None,
    num_workers: int = 0,
) -> ObjectFeatures:
    """Return frozen features of objects in images.

    Args:
        model_or_checkpoint: A backbone, a pretraining model (its teacher is taken, with its normalisation), or a
            checkpoint file of any layout that :func:`odis_mm.transfer.build_backbone` reads.
        images: Paths, or RGB uint8 arrays [H, W, 3].
        boxes_or_masks: For each image either boxes [n, 4] (x1, y1, x2, y2 in its pixels) or masks, bool [n, H, W]; n
            may be 0.
        size: Images are resized to squares of this side.
        batch_size: Images per forward pass, which reads all their objects.
        heads: Attention heads, if a file does not tell (see :func:`odis_mm.transfer.build_vit`).
        num_workers: Processes that decode and resize.

    Raises:
        ConfigError: lists of different lengths, an array of another shape or type, an empty box or mask, an unreadable
            image or checkpoint, or a size that patches do not divide.

    Example:
        >>> found = odis_mm.extract_object_features('epoch_100_backbone.pth', ['street.jpg'], [[[10, 20, 200, 180]]])
        >>> found.token.shape
        torch.Size([1, 384])
    """
    if len(images) != len(boxes_or_masks):
        raise ConfigError(
            f'{len(images)} images and {len(boxes_or_masks)} sets of boxes or masks were given; there must be one set '
            'per image.'
        )
    frozen = as_frozen(model_or_checkpoint, heads)
    return object_features(frozen, ObjectImages(images, boxes_or_masks, frozen.reading), size, batch_size, num_workers)


def as_frozen(model_or_checkpoint: Union[nn.Module, str, Path], heads: Optional[int] = None) -> FrozenBackbone:
    """Return what is evaluated of a backbone, a pretraining model or a checkpoint file."""
    if not isinstance(model_or_checkpoint, nn.Module):
        return frozen_from(model_or_checkpoint, heads)
    if hasattr(model_or_checkpoint, 'branch'):  # TeacherStudent
        preprocessor = model_or_checkpoint.data_preprocessor
        reading = dict(channels=preprocessor.mean.numel())
        return FrozenBackbone(model_or_checkpoint.branch('teacher'), preprocessor.mean, preprocessor.std, reading)
    return FrozenBackbone(model_or_checkpoint)


class ObjectImages(Dataset):
    """Items ``img`` and ``regions`` (boxes [n, 4] or masks [n, H, W]), checked; files are read by ``reading`` (see
    :class:`FrozenBackbone`)."""

    def __init__(
        self, images: Sequence[Image], regions: Sequence[np.ndarray], reading: Optional[Dict[str, Any]] = None
    ):
        self.images, self.regions, self.reading = images, regions, dict(reading or {})

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict:
        image = self.images[index]
        name = f'image {index}' if isinstance(image, np.ndarray) else str(image)
        image = image if isinstance(image, np.ndarray) else read_image(image, **self.reading)
        channels = self.reading.get('channels', 3)
        if image.ndim != 3 or image.shape[2] != channels or image.dtype != np.uint8:
            kind = 'RGB uint8 [H, W, 3]' if channels == 3 else f'uint8 [H, W, {channels}] for this checkpoint'
            raise ConfigError(f'{name} is {image.dtype} {list(image.shape)}; images are {kind}.')
        return dict(img=image, regions=_checked(self.regions[index], image.shape[:2], name))


class AnnotatedObjects(Dataset):
    """The same from an ``ObjectDataset``: its masks if it has any, else its boxes."""

    def __init__(self, images: ObjectDataset):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict:
        sample = self.images[index]
        regions = sample['bboxes']
        if sample['masks']:
            masks = [mask_of(sample, i) for i in range(len(sample['masks']))]
            # a polygon may enclose no pixel
            regions = np.stack(masks) if all(mask.any() for mask in masks) else regions
        return dict(img=sample['img'], regions=np.asarray(regions), labels=sample['labels'])


def _checked(regions, size, name: str) -> np.ndarray:
    regions = np.asarray(regions)
    if regions.size == 0:
        return np.zeros((0, 4))
    if regions.ndim == 2 and regions.shape[1] == 4:
        regions = regions.astype(np.float64)
        inside = np.minimum(np.maximum(regions, 0), (size[1], size[0]) * 2)
        if not (inside[:, 2:] > inside[:, :2]).all():
            bad = int((inside[:, 2:] <= inside[:, :2]).any(1).argmax())
            raise ConfigError(
                f'{name}: box {bad} ({", ".join(f"{x:g}" for x in regions[bad])}) has no area within the image of '
                f'{size[1]} x {size[0]} pixels; boxes are (x1, y1, x2, y2).'
            )
        return inside
    if regions.ndim == 3 and regions.shape[1:] == tuple(size):
        regions = regions.astype(bool)
        if not regions.any((1, 2)).all():
            raise ConfigError(f'{name}: mask {int((~regions.any((1, 2))).argmax())} is empty.')
        return regions
    raise ConfigError(
        f'{name}: an array {list(regions.shape)} is neither boxes [n, 4] nor masks [n, {size[0]}, {size[1]}] of this '
        'image.'
    )


class _Resized(Dataset):
    """Pixels uint8 [3, size, size]; per object its box in pixels and as a share of the image, the patches it touches;
    any masks given."""

    def __init__(self, images: Dataset, size: int, patch: Optional[int]):
        self.images, self.size, self.patch = images, size, patch

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict:
        item = self.images[index]
        (height, width), regions = item['img'].shape[:2], item['regions']
        masks = regions if regions.ndim == 3 else None
        boxes = regions if masks is None else np.array([_box_around(mask) for mask in masks], np.float64)
        view, patches = View((0, 0, width, height), (self.size,) * 2), None
        if self.patch and masks is not None:
            patches = torch.from_numpy(
                np.stack([mask_patch_mask(summed_area(mask), view, self.patch) for mask in masks])
            ).flatten(1)
        elif self.patch:
            patches = torch.from_numpy(np.asarray(box_patch_mask(boxes, view, self.patch))).flatten(1)
        pixels = resize(torch.from_numpy(np.ascontiguousarray(item['img'])).permute(2, 0, 1), (self.size,) * 2)
        return dict(
            pixels=pixels,
            boxes=torch.from_numpy(np.asarray(boxes)).float(),
            patches=patches,
            shares=torch.from_numpy(boxes_to_view(boxes, View((0, 0, width, height), (1, 1)))).float(),
            masks=None if masks is None else torch.from_numpy(masks),
            labels=item.get('labels'),
        )


def _box_around(mask: np.ndarray) -> List[int]:
    rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


def object_features(
    frozen: FrozenBackbone, images: Dataset, size: int, batch_size: int = 64, num_workers: int = 0
) -> ObjectFeatures:
    """Do :func:`extract_object_features` over items ``img``, ``regions``.

    Raises:
        ConfigError: there is no object.
    """
    frozen.check_size(size)
    tokens, pooled, owners, boxes, labels, done = [], [], [], [], [], 0
    resized = _Resized(images, size, frozen.patch if frozen.can_mask else None)
    # not shared among ranks: each may have been asked for images of its own
    for batch in batches(resized, batch_size, num_workers, shared=False):
        pixels, counts = torch.stack(batch['pixels']), [len(found) for found in batch['boxes']]
        if frozen.can_mask:
            out, token = frozen.read_objects(pixels, batch['patches'])
            tokens.append(token.cpu())
        else:
            out = frozen(pixels)
        map_ = out.map
        rows = pool_boxes(map_, batch['shares']).split(counts)
        pooled += [
            row if masks is None else _pool_masks(features, masks)
            for row, features, masks in zip(rows, map_, batch['masks'])
        ]
        owners.append(torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)) + done)
        boxes += batch['boxes']
        labels += [found for found in batch['labels'] if found is not None]
        done += len(counts)
    if not sum(map(len, owners)):
        raise ConfigError('there is no object in these images: give boxes or masks.')
    return ObjectFeatures(
        torch.cat(tokens) if tokens else None,
        torch.cat([row.cpu() for row in pooled]),
        torch.cat(owners),
        torch.cat(boxes),
        torch.from_numpy(np.concatenate(labels)) if labels else None,
    )


def _pool_masks(features: Tensor, masks: Tensor) -> Tensor:
    """Mean over the cells of a map [D, rows, columns], weighted by the share that each mask [n, H, W] covers of them:
    [n, D]."""
    cover = F.adaptive_avg_pool2d(masks.to(features), features.shape[1:]).flatten(1)
    return cover / cover.sum(1, keepdim=True) @ features.flatten(1).T


def neighbour_sheet(
    path: Union[str, Path],
    features: Tensor,
    owner: Tensor,
    boxes: Tensor,
    images: Sequence[Image],
    names: Optional[Sequence[str]] = None,
    queries: int = 8,
    neighbours: int = 7,
    reading: Optional[Dict[str, Any]] = None,
) -> None:
    """Draw a PNG: in each row an object and those of other images that are most similar to it, with the cosine.

    Args:
        path: File to write.
        features: [n, D].
        owner: The image of each object, int64 [n].
        boxes: In pixels, [n, 4].
        images: Paths or arrays, by number.
        names: A word an object, such as its class; it decides the frame: blue where it is the query's, else vermilion
            and dashed.
        queries: Rows, evenly spread over the objects.
        neighbours: Columns after the first.
        reading: Of files that are no usual photographs, see :class:`FrozenBackbone`.

    Raises:
        ConfigError: all objects lie in one image.
    """
    if len(owner.unique()) < 2:
        raise ConfigError(
            'a sheet of neighbours needs objects in two images or more: neighbours in the same image would tell '
            'nothing.'
        )
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    chosen = torch.tensor(subset(len(features), queries))
    unit = F.normalize(features.float(), dim=-1)
    similarity = (unit[chosen] @ unit.T).masked_fill(owner[chosen, None] == owner, -2.0)
    best, place = similarity.topk(min(neighbours, len(features)), dim=-1)
    figure = Figure(figsize=(1.5 * (neighbours + 1), 1.75 * len(chosen) + 0.5), dpi=100, layout='constrained')
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(chosen), neighbours + 1, squeeze=False)
    for row, query in enumerate(chosen.tolist()):
        shown = [(query, 'query')] + [
            (other, f'{cosine:.2f}') for other, cosine in zip(place[row].tolist(), best[row].tolist()) if cosine > -2
        ]
        for axes in grid[row]:
            axes.set(xticks=[], yticks=[])
            axes.set_frame_on(False)
        for axes, (index, title) in zip(grid[row], shown):
            image = images[int(owner[index])]
            image = image if isinstance(image, np.ndarray) else read_image(image, **(reading or {}))
            image = image[..., : 3 if image.shape[2] >= 3 else 1]
            x1, y1, x2, y2 = boxes[index].tolist()
            axes.imshow(
                image[int(y1) : max(int(np.ceil(y2)), int(y1) + 1), int(x1) : max(int(np.ceil(x2)), int(x1) + 1)]
            )
            # in a name, $ begins no formula
            axes.set_title(title if names is None else f'{names[index]} {title}', fontsize=7, parse_math=False)
            if names is not None and index != query:
                axes.set_frame_on(True)
                same = names[index] == names[query]
                for side in axes.spines.values():
                    side.set(edgecolor=_SAME if same else _OTHER, linestyle='-' if same else '--', linewidth=2.5)
    figure.suptitle('objects and their nearest neighbours in other images, with the cosine similarity', fontsize=9)
    if names is not None:
        lines = [Line2D([], [], color=_SAME, lw=2.5), Line2D([], [], color=_OTHER, lw=2.5, linestyle='--')]
        labels = ['the class of the query (first column)', 'another class']
        figure.legend(lines, labels, loc='outside lower center', ncols=2, fontsize=8)
    figure.savefig(path)


def extract_dataset(
    frozen: FrozenBackbone,
    dataset: ObjectDataset,
    out: Union[str, Path],
    size: int = 224,
    sheet: Optional[Union[str, Path]] = None,
    batch_size: int = 64,
    num_workers: int = 0,
) -> ObjectFeatures:
    """Write the features of all objects of a data set as ``.npz`` without pickles, and draw a sheet of neighbours.

    The file holds ``token`` (if there is one), ``pooled``, ``boxes``, ``image`` (row of ``file_name`` and
    ``image_id``, its place in the annotations where those have ids that are no whole numbers), ``label`` (row of
    ``classes``; -1: unknown).

    Raises:
        ConfigError: another ending than ``.npz``, and what :func:`extract_object_features` raises.
    """
    if Path(out).suffix != '.npz':
        raise ConfigError(f'{out} must end in .npz.')
    found = object_features(frozen, AnnotatedObjects(dataset), size, batch_size, num_workers)
    infos = [dataset.get_data_info(i) for i in range(len(dataset))]
    labels = found.labels.numpy()  # of the objects that were read: those outside of their image were left out
    classes = [str(name) for name in dataset.metainfo.get('classes') or ()]
    arrays = dict(
        pooled=found.pooled.numpy(),
        boxes=found.boxes.numpy(),
        image=found.image.numpy(),
        label=labels,
        classes=np.array(classes, dtype=str),
        file_name=np.array([info['img_path'] for info in infos]),
        image_id=np.array([info['img_id'] for info in infos]),
    )
    if found.token is not None:
        arrays['token'] = found.token.numpy()
    atomic_write(out, lambda file: np.savez(file, **arrays))
    if sheet is not None:
        names = [classes[label] for label in labels] if classes and labels.min() >= 0 else None
        neighbour_sheet(
            sheet,
            found.pooled if found.token is None else found.token,
            found.image,
            found.boxes,
            [info['img_path'] for info in infos],
            names,
            reading=frozen.reading,
        )
    return found
