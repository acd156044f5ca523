"""One face for every frozen backbone: uint8 images in, the token and the map out."""

from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from mmengine.dist import all_gather, get_dist_info
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, Subset

from ..datasets.workers import single_thread_worker
from ..transfer import build_backbone, read_meta
from ..utils.errors import ConfigError
from ..utils.files import PathLike
from ..utils.progress import reported

IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


class Features(NamedTuple):
    """``token`` [B, D] ([OBJ] or [CLS]; None for a ConvNet) and ``map`` [B, D, rows, columns]."""

    token: Optional[Tensor]
    map: Tensor


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Set evaluation mode, without gradients; afterwards every submodule is in the mode it was in (a teacher's batch
    norms train)."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, mode in modes:
            part.training = mode


class FrozenBackbone:
    """A backbone as it is evaluated: ``ObjectViT``, a stock ``VisionTransformer`` or ``ResNet`` of mmpretrain.

    Args:
        backbone: The module; its weights and modes stay as they are.
        mean: Per channel (RGB), in 0..255.
        std: The same.
        reading: How its training read images that are no usual photographs: ``channels``, ``window``, ``percentiles``
            of ``LoadObjectImage``; None: they are.
    """

    def __init__(
        self,
        backbone: nn.Module,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        reading: Optional[Dict[str, Any]] = None,
    ):
        self.backbone, self.reading = backbone, dict(reading or {})
        self.device = next(backbone.parameters()).device
        self.mean, self.std = (
            torch.as_tensor(values, dtype=torch.float32, device=self.device).reshape(-1, 1, 1) for values in (mean, std)
        )
        embed = getattr(backbone, 'patch_embed', None)
        self.patch = None if embed is None else int(embed.projection.stride[0])
        self.can_mask = hasattr(backbone, 'object_slice')

    def check_size(self, size: int) -> None:
        """Refuse a size in pixels that patches do not divide.

        Raises:
            ConfigError: they do not.
        """
        if self.patch and size % self.patch:
            raise ConfigError(
                f'images of {size} pixels cannot be cut into patches of {self.patch}: choose a multiple (size=, '
                '--size).'
            )

    def __call__(self, images: Tensor, object_mask: Optional[Tensor] = None) -> Features:
        """Features of uint8 images [B, 3, H, W]; with ``object_mask`` (bool [B, rows * columns]) the token sees those
        patches only.

        Raises:
            ConfigError: a mask for a backbone that has no [OBJ] token.
        """
        if object_mask is not None:
            self.check_can_mask()
        inputs = self._normalised(images)
        with evaluating(self.backbone):
            out = self.backbone(inputs) if object_mask is None else self.backbone(inputs, object_mask.to(self.device))
        return self._features(out[-1] if isinstance(out, (tuple, list)) else out, images)

    def read_objects(self, images: Tensor, object_masks: Sequence[Tensor]) -> Tuple[Features, Tensor]:
        """Return the features of whole uint8 images [B, 3, H, W] and the tokens [n, D] of their objects, in one pass.

        The objects' tokens differ a little from those of a pass for each object, as the patches see the whole image's
        [OBJ] and not theirs (see :meth:`ObjectViT.read_objects`).

        Args:
            images: uint8 [B, 3, H, W].
            object_masks: For each image bool [n_b, rows * columns]; n is their sum.

        Raises:
            ConfigError: a backbone that has no [OBJ] token.
        """
        self.check_can_mask()
        padded = pad_sequence(list(object_masks), batch_first=True)  # [B, most, N]; what is added sees nothing
        if not padded.shape[1]:
            whole = self(images)
            return whole, whole.token[:0]
        with evaluating(self.backbone):
            out, objects = self.backbone.read_objects(self._normalised(images), padded.to(self.device))
        counts = torch.tensor([len(masks) for masks in object_masks])
        there = torch.arange(padded.shape[1]) < counts[:, None]
        return self._features(out, images), objects[there.to(self.device)].float()

    def check_can_mask(self) -> None:
        """Refuse a backbone that has no [OBJ] token.

        Raises:
            ConfigError: it has none.
        """
        if not self.can_mask:
            raise ConfigError(
                f'{type(self.backbone).__name__} has no [OBJ] token that could be told its object: evaluate it without '
                'boxes, or pool them from the map.'
            )

    def _normalised(self, images: Tensor) -> Tensor:
        return (images.to(self.device, non_blocking=True).float() - self.mean) / self.std

    def _features(self, out: Tensor, images: Tensor) -> Features:
        if out.ndim == 4:
            return Features(None, out.float())
        if self.can_mask:
            token = out[:, self.backbone.object_slice].mean(1)
            return Features(token.float(), self.backbone.to_map(out, images.shape[2:]).float())
        rows, columns = images.shape[2] // self.patch, images.shape[3] // self.patch
        leading = out.shape[1] - rows * columns  # [B, T, D]; none where a stock ViT has no [CLS]
        token = out[:, 0].float() if leading else None
        return Features(token, out[:, leading:].mT.unflatten(2, (rows, columns)).float())


def frozen_from(
    checkpoint: PathLike,
    heads: Optional[int] = None,
    source_grid: Optional[Tuple[int, int]] = None,
    student: bool = False,
    random: bool = False,
) -> FrozenBackbone:
    """Return the backbone of a checkpoint file as it is evaluated, with the normalisation that the file tells, else
    ImageNet's, and the reading of images that it tells.

    Args:
        checkpoint, heads, source_grid, student, random: See :func:`build_backbone`.
    """
    backbone, meta = build_backbone(checkpoint, heads, source_grid, student, random), read_meta(checkpoint)
    if 'mean' in meta and 'std' in meta:
        return FrozenBackbone(backbone, meta['mean'], meta['std'], meta.get('reading'))
    return FrozenBackbone(backbone, reading=meta.get('reading'))


def resize(pixels: Tensor, size: Tuple[int, int]) -> Tensor:
    """Resize uint8 [..., H, W] to ``size``, bicubic with antialiasing, as PIL does it."""
    if tuple(pixels.shape[-2:]) == tuple(size):
        return pixels
    batch = pixels.reshape(1, -1, *pixels.shape[-2:])
    return F.interpolate(batch, tuple(size), mode='bicubic', antialias=True).reshape(*pixels.shape[:-2], *size)


def subset(length: int, most: Optional[int]) -> List[int]:
    """Return at most ``most`` indices below ``length``, evenly spread, the same in every run."""
    count = length if most is None else min(most, length)
    return [i * length // count for i in range(count)]


def batches(dataset: Dataset, batch_size: int, num_workers: int = 0, shared: bool = True) -> Iterator[Dict[str, list]]:
    """Yield this rank's share (every world-size-th item) of a data set in batches, or all of it if not ``shared``; the
    global random numbers are left alone. What takes longer is reported."""
    rank, world = get_dist_info() if shared else (0, 1)
    share = Subset(dataset, range(rank, len(dataset), world))
    loader = DataLoader(
        share,
        batch_size,
        num_workers=num_workers,
        collate_fn=_columns,
        worker_init_fn=single_thread_worker,
        generator=torch.Generator(),
    )  # without one of its own, a loader draws its seed from the global generator
    return reported(loader, len(dataset), batch_size * world)


def _columns(items: List[dict]) -> Dict[str, list]:
    return {key: [item[key] for item in items] for key in items[0]}


def gather_rows(rows: Tensor, total: int) -> Tensor:
    """Return the rows [n, ...] of all ranks, which took every world-size-th of ``total`` items, in the order of the
    items."""
    world = get_dist_info()[1]
    if world == 1:
        return rows
    most = -(-total // world)
    padded = torch.cat((rows, rows.new_zeros(most - len(rows), *rows.shape[1:])))
    return torch.stack(all_gather(padded), dim=1).flatten(0, 1)[:total]
