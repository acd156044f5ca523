"""Objects from a frozen ViT: normalised cuts of the graph of its patches. No labels, no detector.

The graph: patches are nodes, edges the similarity of their keys, queries or values. Shi and Malik's normalised cut
(PAMI 2000) parts it in two; the side of the strongest patch is an object. It is taken out and the rest is cut again,
until a cut separates too little: after TokenCut (Wang et al., arXiv 2202.11539) and MaskCut (Wang et al., arXiv
2301.11320). Written from the papers.
"""

from dataclasses import dataclass
from typing import Callable, Dict, List, Optional, Sequence, Tuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..datasets.image_io import as_colours
from ..evaluation import FrozenBackbone
from ..evaluation.frozen import frozen_from
from ..transfer import read_meta
from ..utils.errors import ConfigError
from .found import Found, encode, keep_best, useful

LONGER = 30  # patches: the longer side of an image, unasked
_EDGE = 1e-5  # of unlike patches: keeps the graph connected


def second_eigenvectors(
    affinity: Tensor, alive: Tensor, start: Tensor, steps: int = 12, tolerance: float = 1e-4
) -> Tuple[Tensor, Tensor]:
    """Solve (D - W) x = lambda D x for the second smallest lambda, for a batch of graphs.

    By Lanczos on D^-1/2 W D^-1/2, from which the known first vector is taken out: a dozen products of a matrix and a
    vector instead of the N^3 of a whole decomposition. Graphs on which it has not converged after twelve rounds are
    decomposed as a whole.

    Args:
        affinity: W, symmetric and not negative, [B, N, N].
        alive: bool [B, N], the nodes that are still in the graph.
        start: float [N], any vector; the result depends on it only up to its sign and the tolerance.
        steps: Of a round.
        tolerance: Of the residual.

    Returns:
        ``vectors`` [B, N], 0 at nodes that are not alive; ``values`` lambda [B].
    """
    degree = (affinity @ alive[:, :, None].to(affinity)) * alive[:, :, None]  # [B, N, 1]
    root = torch.where(degree > 0, degree.clamp_min(1e-12).rsqrt(), torch.zeros_like(degree))
    first = F.normalize(degree.sqrt(), dim=1)

    def product(vector: Tensor) -> Tensor:
        return root * (affinity @ (root * vector))  # no matrix of its own for every cut

    steps = min(steps, affinity.shape[1] - 1)
    vector = start.expand(len(affinity), -1)[:, :, None] * (root > 0)
    for _ in range(12):
        basis, ritz, residual = _lanczos(product, first, vector, steps)
        vector = basis @ ritz
        if bool((residual < tolerance).all()):
            break
    else:
        hard = (residual >= tolerance).nonzero().flatten()
        whole = affinity[hard] * root[hard] * root[hard].mT - first[hard] @ first[hard].mT
        vector[hard] = torch.linalg.eigh(whole)[1][:, :, -1:]
    vector = F.normalize(vector, dim=1)
    values = 1 - (vector * product(vector)).sum((1, 2))
    return (vector * root)[:, :, 0], values


def _lanczos(
    product: Callable[[Tensor], Tensor], first: Tensor, vector: Tensor, steps: int
) -> Tuple[Tensor, Tensor, Tensor]:
    """Basis [B, N, k <= steps], the largest Ritz vector in it [B, k, 1] and its residual [B], orthogonal to
    ``first``."""
    diagonal, side, kept = [], [], first
    for _ in range(steps):
        for _ in range(2):  # twice is enough
            vector = vector - kept @ (kept.mT @ vector)
        norm = vector.norm(dim=1, keepdim=True)
        vector = vector / norm.clamp_min(1e-12) * (norm > 1e-6)  # an exhausted space gives zeros
        side.append(norm.flatten() * (norm.flatten() > 1e-6))
        kept = torch.cat((kept, vector), 2)
        image = product(vector)
        diagonal.append((vector * image).sum((1, 2)))
        vector = image
    small = torch.diag_embed(torch.stack(diagonal, 1))
    if steps > 1:
        off = torch.stack(side[1:], 1)
        small = small + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
    vectors = torch.linalg.eigh(small)[1]
    vector = vector - kept @ (kept.mT @ vector)
    return kept[:, :, 1:], vectors[:, :, -1:], vector.norm(dim=1).flatten() * vectors[:, -1, -1].abs()


def guided_filter(guide: np.ndarray, soft: np.ndarray, radius: int, epsilon: float = 1e-3) -> np.ndarray:
    """Make a soft mask [h, w] follow the edges of a grey image [h, w], both in 0..1 (He et al., PAMI 2013)."""

    def mean(values: np.ndarray) -> np.ndarray:
        return cv2.blur(values, (2 * radius + 1, 2 * radius + 1), borderType=cv2.BORDER_REFLECT)

    average, level = mean(guide), mean(soft)
    slope = (mean(guide * soft) - average * level) / (mean(guide * guide) - average * average + epsilon)
    return mean(slope) * guide + mean(level - slope * average)


@dataclass
class Attention:
    """Source ``attention``. Images are read and normalised as the checkpoint tells.

    Args:
        checkpoint: Any ViT that ``tools/transfer.py`` reads, the project's own teachers included.
        size: Longer side of the image in pixels; both sides are rounded to patches. None: as many as 30 patches have,
            480 for patches of 16, as the time of a cut grows with the square of their number.
        features: 'key' (of the last block), or 'qkv' (queries, keys and values of all blocks, their similarities
            averaged).
        threshold: Cosine similarity above which two patches are alike, after the image's mean patch is taken out.
        most: Cuts of an image at most.
        cut: Cuts end where the normalised cut (0: nothing in common, 1: nothing to part) is above this.
        iou, min_side, max_area: As of ``classic``.
        heads, source_grid: See :func:`build_backbone`.
        device: As torch names it.
        seed: Of the solver's start vector.
    """

    checkpoint: str
    size: Optional[int] = None
    features: str = 'key'
    threshold: float = 0.2
    most: int = 20
    cut: float = 0.8
    iou: float = 0.7
    min_side: float = 0.05
    max_area: float = 0.7
    heads: Optional[int] = None
    source_grid: Optional[Tuple[int, int]] = None
    batch: int = 16
    device: str = 'cpu'
    seed: int = 0
    name = 'attention'

    def __post_init__(self):
        if self.features not in ('key', 'qkv'):
            raise ConfigError(f"features={self.features!r} is unknown: choose 'key' or 'qkv'.")
        self._frozen: Optional[FrozenBackbone] = None
        self._reading: Optional[dict] = None

    @property
    def reading(self) -> dict:
        """How the training of the checkpoint read images that are no usual photographs."""
        if self._reading is None:
            self._reading = read_meta(self.checkpoint).get('reading') or {}
        return self._reading

    @property
    def on_gpu(self) -> bool:
        """Whether the model runs on a GPU, and so in one process."""
        return self.device != 'cpu'

    def __getstate__(self) -> dict:  # processes load the weights themselves
        return {**self.__dict__, '_frozen': None}

    @property
    def frozen(self) -> FrozenBackbone:
        """The ViT, loaded at the first use."""
        if self._frozen is None:
            told = frozen_from(self.checkpoint, self.heads, self.source_grid)
            self._frozen = FrozenBackbone(told.backbone.to(self.device), told.mean, told.std, told.reading)
            if self._frozen.patch is None:
                raise ConfigError(f'{self.checkpoint} is no ViT: the source attention cuts the graph of its patches.')
        return self._frozen

    def __call__(self, images: Sequence[np.ndarray]) -> List[Found]:
        shapes: Dict[Tuple[int, int], List[int]] = {}
        for i, image in enumerate(images):
            shapes.setdefault(self.grid(image), []).append(i)
        found: List[Optional[Found]] = [None] * len(images)
        for grid, members in shapes.items():
            for start in range(0, len(members), self.batch):
                batch = members[start : start + self.batch]
                for i, objects in zip(batch, self._find([images[i] for i in batch], grid)):
                    found[i] = objects
        return found

    def grid(self, image: np.ndarray) -> Tuple[int, int]:
        """Rows and columns of patches."""
        patch, longer = self.frozen.patch, max(image.shape[:2])
        size = self.size or LONGER * patch
        return tuple(max(round(side * size / longer / patch), 2) for side in image.shape[:2])

    @torch.no_grad()
    def _find(self, images: Sequence[np.ndarray], grid: Tuple[int, int]) -> List[Found]:
        patch = self.frozen.patch
        sides = grid[1] * patch, grid[0] * patch
        pixels = [
            cv2.resize(image, sides, interpolation=cv2.INTER_AREA if image.shape[0] >= sides[1] else cv2.INTER_CUBIC)
            for image in images
        ]
        pixels = [image.reshape(*sides[::-1], -1) for image in pixels]  # OpenCV takes the axis of one channel away
        affinity = self.affinity(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2), grid)
        cuts = self._cuts(affinity, grid)
        return [self._objects(image, small, found) for image, small, found in zip(images, pixels, cuts)]

    def affinity(self, pixels: Tensor, grid: Tuple[int, int]) -> Tensor:
        """Return the edges between all patches of images uint8 [B, 3, h, w]: float [B, N, N], 1 where two are alike."""
        kept: List[Tensor] = []
        layers = self.frozen.backbone.layers
        hooks = [
            layer.attn.qkv.register_forward_hook(lambda module, inputs, output: kept.append(output))
            for layer in (layers if self.features == 'qkv' else layers[-1:])
        ]
        try:
            self.frozen(pixels)
        finally:
            for hook in hooks:
                hook.remove()
        count, total = grid[0] * grid[1], 0
        for output in kept:
            output = output.float().reshape(len(pixels), -1, 3, output.shape[-1] // 3)[:, -count:]
            for part in range(3) if self.features == 'qkv' else (1,):
                features = output[:, :, part] - output[:, :, part].mean(1, keepdim=True)
                features = F.normalize(features, dim=2)
                total = total + features @ features.mT
        alike = total / (len(kept) * (3 if self.features == 'qkv' else 1))
        return torch.where(alike > self.threshold, 1.0, _EDGE)

    def _cuts(self, affinity: Tensor, grid: Tuple[int, int]) -> List[List[Tuple[np.ndarray, float]]]:
        """Of each image a list of (patches of the object bool [rows, columns], normalised cut), in the order found."""
        batch, count = affinity.shape[:2]
        start = torch.randn(count, generator=torch.Generator().manual_seed(self.seed)).to(affinity)
        alive = torch.ones(batch, count, dtype=torch.bool, device=affinity.device)
        going, found = list(range(batch)), [[] for _ in range(batch)]
        for _ in range(self.most):
            if not going:
                break
            vectors, values = second_eigenvectors(affinity, alive, start)
            still = []
            for row, (i, vector, value) in enumerate(zip(going, vectors.cpu().numpy(), values.tolist())):
                left = alive[row].cpu().numpy()
                if value > self.cut or left.sum() < 4:
                    continue
                still.append(row)
                seed = np.abs(vector).argmax()
                vector = vector * np.sign(vector[seed])
                side = ((vector > vector[left].mean()) & left).reshape(grid)
                parts = cv2.connectedComponents(side.astype(np.uint8), connectivity=4)[1]
                inside = (parts == parts.flat[seed]) & side
                found[i].append((inside, value))
                alive[row] &= torch.from_numpy(~inside.ravel()).to(alive.device)
            if len(still) < len(going):
                affinity, alive, going = affinity[still], alive[still], [going[row] for row in still]
        return found

    def _objects(self, image: np.ndarray, small: np.ndarray, cuts: Sequence[Tuple[np.ndarray, float]]) -> Found:
        height, width = image.shape[:2]
        grey = cv2.cvtColor(as_colours(small), cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
        boxes, scores, masks = [], [], []
        for inside, value in cuts:
            mask = sharpen(grey, inside, self.frozen.patch)
            x, y, w, h = cv2.boundingRect(mask.astype(np.uint8))
            boxes.append([x, y, x + w, y + h])
            scores.append(1 - value)
            masks.append(mask)
        boxes = np.array(boxes, float).reshape(-1, 4) * np.tile([width / small.shape[1], height / small.shape[0]], 2)
        scores = np.array(scores, float)
        good = np.flatnonzero(useful(boxes, height, width, self.min_side, self.max_area))
        kept = good[keep_best(boxes[good], scores[good], self.iou, len(good))]
        return Found(boxes[kept], scores[kept], [encode(masks[i], height, width) for i in kept])


def sharpen(grey: np.ndarray, patches: np.ndarray, patch: int) -> np.ndarray:
    """Return the mask bool [h, w] of an object from its patches bool [rows, columns]: near their border it follows the
    picture's edges.

    Thin objects, of which that leaves little, keep their patches.
    """
    size = grey.shape[::-1]
    whole = cv2.resize(patches.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
    soft = cv2.resize(patches.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
    near = cv2.dilate(patches.astype(np.uint8), np.ones((3, 3), np.uint8))
    mask = guided_filter(grey, soft, max(patch // 2, 1)) > 0.5
    mask &= cv2.resize(near, size, interpolation=cv2.INTER_NEAREST) > 0
    count, parts, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    if count > 1:
        mask = parts == 1 + stats[1:, cv2.CC_STAT_AREA].argmax()
    return mask if mask.sum() > 0.6 * whole.sum() else whole
