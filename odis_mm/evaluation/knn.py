"""Weighted k-NN on frozen features, the protocol of DINO and iBOT."""

import os
from collections import Counter
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce, get_dist_info
from torch import Tensor
from torch.utils.data import Dataset

from ..datasets.objects import ObjectDataset
from ..datasets.segmentation import mask_of
from ..structures import View, box_patch_mask
from ..utils.errors import ConfigError
from .frozen import FrozenBackbone, batches, gather_rows, resize, subset

KS = (10, 20, 100, 200)


def knn_accuracy(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    ks: Sequence[int] = KS,
    temperature: float = 0.07,
    chunk: int = 4096,
) -> dict:
    """Return the share of test features whose class wins the vote of their k nearest training features.

    Votes weigh exp(cosine similarity/temperature) (DINO, arXiv 2104.14294; the authors' k are the default). Under
    several ranks, all of which hold all features, each classifies its share; scikit-learn's classifier knows neither
    ranks nor blocks nor several k at once.

    Args:
        train: [n, D], any scale: both sides are l2-normalised here.
        train_labels: int64 [n].
        test: [m, D].
        test_labels: int64 [m].
        ks: Values of k; those above n are left out.
        temperature: 0.07.
        chunk: Features of a side per block: bounds the memory at chunk x chunk similarities.

    Returns:
        ``{k: accuracy in percent}``.

    Raises:
        ConfigError: if there is nothing to vote or to classify, a k below 1, or a temperature that is not above 0.
    """
    if min(ks) < 1 or not temperature > 0:  # nobody votes, or with infinite weight: the first class would win
        raise ConfigError(f'k-NN needs k of 1 or more and a temperature above 0, got {list(ks)} and {temperature:g}.')
    if not len(train) or not len(test):
        raise ConfigError(f'k-NN needs features on both sides, got {len(train)} to vote and {len(test)} to classify.')
    ks = [k for k in ks if k <= len(train)] or [len(train)]
    rank, world = get_dist_info()
    train = F.normalize(train.float(), dim=-1)
    num_classes = int(max(train_labels.max(), test_labels.max())) + 1
    hits = torch.zeros(len(ks), dtype=torch.float64)
    for block, labels in zip(test[rank::world].split(chunk), test_labels[rank::world].split(chunk)):
        similarity, index = nearest(F.normalize(block.float(), dim=-1), train, max(ks), chunk)  # [c, k]
        # beside that of the nearest: of low temperatures exp(similarity / temperature) would be infinite
        weight = ((similarity - similarity[:, :1]) / temperature).exp().cpu()
        voted = train_labels[index.to(train_labels.device)].cpu()
        for i, k in enumerate(ks):
            votes = torch.zeros(len(block), num_classes).scatter_add_(1, voted[:, :k], weight[:, :k])
            hits[i] += int((votes.argmax(-1) == labels.cpu()).sum())
    if world > 1:
        all_reduce(hits)
    return {k: 100 * float(hit) / len(test) for k, hit in zip(ks, hits)}


def majority_share(labels: Iterable[int]) -> float:
    """Return the share in percent of the most frequent class: the accuracy of an answer that looks at no image."""
    counts = Counter(map(int, labels))
    return 100 * max(counts.values()) / sum(counts.values())


def nearest(queries: Tensor, keys: Tensor, k: int, chunk: int) -> Tuple[Tensor, Tensor]:
    """Return the k largest inner products [c, k] and their places among the keys, block by block."""
    best, place = (
        queries.new_empty(len(queries), 0),
        torch.empty(len(queries), 0, dtype=torch.long, device=queries.device),
    )
    for start in range(0, len(keys), chunk):
        similarity, index = (queries @ keys[start : start + chunk].T).topk(min(k, len(keys) - start, chunk), dim=-1)
        best, place = torch.cat((best, similarity), 1), torch.cat((place, index + start), 1)
        best, order = best.topk(min(k, best.shape[1]), dim=-1)
        place = place.gather(1, order)
    return best, place


class LabelledImages(Dataset):
    """A folder with one folder a class, by the protocol: short side to size * 256/224, bicubic, centre crop.

    Args:
        root: ``root/<class>/**.jpg``.
        size: Side of the crop.
        patch: Side of a patch; needed with boxes.
        ann_file: Objects at inference, any json that ``ObjectDataset`` reads, paths below ``root``. It lists the images
            to use.
        most: At most so many images, evenly spread.
        reading: Of images that are no usual photographs, see :class:`FrozenBackbone`.

    Items: ``pixels`` uint8 [3, size, size], ``label``, ``name``, and ``mask``, bool [patches]: what the image's objects
    together touch (all patches where no object lies in the crop); None without ``ann_file``.

    Raises:
        ConfigError: an image that lies in no class folder, or a single class.
    """

    def __init__(
        self,
        root: str,
        size: int = 224,
        patch: Optional[int] = None,
        ann_file: str = '',
        most: Optional[int] = None,
        reading: Optional[Dict[str, Any]] = None,
    ):
        self.images = ObjectDataset(
            ann_file=os.path.abspath(ann_file) if ann_file else '',
            data_prefix=str(root),
            pipeline=[dict(type='LoadObjectImage', **(reading or {}))],
        )
        self.size, self.patch = size, patch
        self.index = subset(len(self.images), most)
        names = [os.path.relpath(self.images.get_data_info(i)['img_path'], root) for i in range(len(self.images))]
        bare = next((name for name in names if len(Path(name).parts) < 2), None)
        if bare is not None:
            raise ConfigError(
                f'{os.path.join(root, bare)} lies in no class folder: labelled images are expected as '
                f'{root}/<class>/<image>.'
            )
        self.classes = sorted({Path(name).parts[0] for name in names})
        if len(self.classes) < 2:
            raise ConfigError(f'{root} holds the class {self.classes[0]} only: k-NN needs two or more class folders.')
        self.labels = [self.classes.index(Path(name).parts[0]) for name in names]
        self.with_objects = bool(ann_file)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, item: int) -> dict:
        index = self.index[item]
        sample = self.images[index]
        height, width = sample['img'].shape[:2]
        short = round(self.size * 256 / 224)
        new = (short, int(short * width / height)) if height <= width else (int(short * height / width), short)
        top, left = (int(round((side - self.size) / 2.0)) for side in new)
        window = (slice(top, top + self.size), slice(left, left + self.size))
        pixels = resize(torch.from_numpy(np.ascontiguousarray(sample['img'])).permute(2, 0, 1), new)[(..., *window)]
        mask = None
        if self.with_objects:
            view = View(
                (left * width / new[1], top * height / new[0], self.size * width / new[1], self.size * height / new[0]),
                (self.size,) * 2,
            )
            mask = self._object_mask(sample, view, new, window)
        return dict(pixels=pixels, label=self.labels[index], name=sample['img_path'], mask=mask)

    def _object_mask(self, sample: dict, view: View, new: Tuple[int, int], window: Tuple[slice, slice]) -> Tensor:
        if sample['masks']:
            area = np.any([mask_of(sample, i) for i in range(len(sample['masks']))], axis=0)
            area = F.adaptive_max_pool2d(torch.from_numpy(area)[None, None].float(), new)[(..., *window)]
            mask = F.max_pool2d(area, self.patch)[0, 0] > 0
        else:
            touched = box_patch_mask(np.asarray(sample['bboxes'], np.float64), view, self.patch)
            mask = torch.from_numpy(touched).any(0)
        return (mask if mask.any() else torch.ones_like(mask)).flatten()


def image_features(
    frozen: FrozenBackbone, images: LabelledImages, batch_size: int = 64, num_workers: int = 0
) -> Tuple[Dict[str, Tensor], Tensor]:
    """Return the features of all images, on every rank: ``token`` [n, D] if the backbone has one, ``patch_mean`` [n,
    D], and labels [n].

    With objects the token sees them only, and the mean is over their patches.

    Raises:
        ConfigError: fewer images than ranks, or a size that patches do not divide.
    """
    frozen.check_size(images.size)
    if len(images) < get_dist_info()[1]:
        raise ConfigError(
            f'{len(images)} images are fewer than the {get_dist_info()[1]} ranks that share them: use fewer ranks, or '
            'more images.'
        )
    tokens, means, labels = [], [], []
    for batch in batches(images, batch_size, num_workers):
        mask = torch.stack(batch['mask']) if images.with_objects else None
        out = frozen(torch.stack(batch['pixels']), mask)
        if out.token is not None:
            tokens.append(out.token.cpu())
        weight = torch.ones(len(out.map), out.map[0, 0].numel()) if mask is None else mask.float()
        weight = (weight / weight.sum(1, keepdim=True)).to(out.map.device)
        means.append(torch.einsum('bdn,bn->bd', out.map.flatten(2), weight).cpu())
        labels += batch['label']
    found = dict(token=tokens, patch_mean=means)
    found = {name: gather_rows(torch.cat(parts), len(images)) for name, parts in found.items() if parts}
    return found, gather_rows(torch.tensor(labels), len(images))


def knn_images(
    frozen: FrozenBackbone,
    train: LabelledImages,
    val: LabelledImages,
    ks: Sequence[int] = KS,
    temperature: float = 0.07,
    batch_size: int = 64,
    num_workers: int = 0,
) -> Dict[str, Dict[int, float]]:
    """Return the k-NN accuracy in percent by feature (``token``: [OBJ] or [CLS]; ``patch_mean``) and k.

    Raises:
        ConfigError: the two folders do not have the same classes.
    """
    if train.classes != val.classes:
        only = sorted(set(train.classes) ^ set(val.classes))
        raise ConfigError(
            f'the training and the validation folder have different classes ({", ".join(only[:4])} in one of them '
            'only).'
        )
    voters, voter_labels = image_features(frozen, train, batch_size, num_workers)
    tested, test_labels = image_features(frozen, val, batch_size, num_workers)
    return {
        name: knn_accuracy(voters[name], voter_labels, tested[name], test_labels, ks, temperature) for name in voters
    }


def labelled_split(
    root: str,
    frozen: FrozenBackbone,
    size: int = 224,
    boxes: Sequence[str] = ('', ''),
    most: Sequence[Optional[int]] = (None, None),
) -> List[LabelledImages]:
    """Return ``root/train`` and ``root/val``, with a json of objects and a largest number of images for each.

    Raises:
        ConfigError: objects for a backbone that has no [OBJ] token, and what :class:`LabelledImages` raises.
    """
    if any(boxes):
        frozen.check_can_mask()
    return [
        LabelledImages(os.path.join(root, part), size, frozen.patch, ann_file, count, frozen.reading)
        for part, ann_file, count in zip(('train', 'val'), boxes, most)
    ]
