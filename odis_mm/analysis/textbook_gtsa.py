"""GTSA's losses written once more from the equations (arXiv 2304.08014), for one image, one pair and one RoI at a time.

Slow on purpose. Tests compare the training code with it, ``benchmark_gtsa`` times both.
"""

from functools import cache
from typing import Dict, List, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

Box = Tuple[float, float, float, float]


def intersection(a: Box, b: Box) -> Optional[Box]:
    """What two crops (x, y, w, h) share, as (x1, y1, x2, y2) in pixels of the image; None: no area."""
    x1, y1 = max(a[0], b[0]), max(a[1], b[1])
    x2, y2 = min(a[0] + a[2], b[0] + b[2]), min(a[1] + a[3], b[1] + b[3])
    return (x1, y1, x2, y2) if x2 > x1 and y2 > y1 else None


def in_view(box: Box, crop: Box, size: Tuple[int, int], turns: int) -> Box:
    """A box of the image in pixels of a view of it, turned counter-clockwise with it, one quarter at a time."""
    height, width = size
    x1, x2 = ((x - crop[0]) * width / crop[2] for x in (box[0], box[2]))
    y1, y2 = ((y - crop[1]) * height / crop[3] for y in (box[1], box[3]))
    for _ in range(turns):
        x1, y1, x2, y2 = y1, width - x2, y2, width - x1
        width, height = height, width
    return x1, y1, x2, y2


def crop_loss(
    teacher: Tensor, student: Tensor, teacher_box: Box, student_box: Box, turns: int, size: int, patch: int
) -> Tensor:
    """- mean cosine over the cells of one pair's maps [C, h, w]; the teacher's crop turned by ``turns``."""
    t = roi_align(teacher[None], [torch.tensor([teacher_box])], size, 1 / patch, aligned=True)[0]
    s = roi_align(student[None], [torch.tensor([student_box])], size, 1 / patch, aligned=True)[0]
    t = torch.rot90(t, turns, (1, 2))
    cells = [F.cosine_similarity(s[:, i, j], t[:, i, j], dim=0) for i in range(size) for j in range(size)]
    return -sum(cells) / len(cells)


def correspondence_loss(teacher: Tensor, student: Tensor, keep: int) -> Tensor:
    """- mean cosine of the ``keep`` best matches of one pair's maps [C, h, w], in either direction, averaged."""
    t, s = (F.normalize(x.flatten(1).T, dim=1) for x in (teacher, student))  # [cells, C]

    def one_way(a: Tensor, b: Tensor) -> Tensor:
        cosine = a @ b.T
        best = [max(range(len(row)), key=row.__getitem__) for row in cosine.tolist()]  # the first of equals
        matches = [cosine[i, j] for i, j in enumerate(best)]
        return -sum(sorted(matches, key=lambda x: -x.item())[:keep]) / keep

    return (one_way(s, t) + one_way(t, s)) / 2


def losses(
    head: nn.Module,
    teacher_neck: nn.Module,
    student_neck: nn.Module,
    teacher: Tensor,
    student: List[Tensor],
    samples: dict,
    patch: int,
    heads_once: bool = False,
) -> Dict[str, Tensor]:
    """The losses of ``GTSA.compute_losses``, weighted.

    As the equations have it, a pair's loss is a function of its two backbone maps: necks and predictor are part of it.

    Args:
        head: A ``GTSAHead``: its modules, sizes and weights are used, not its methods.
        teacher_neck, student_neck: Applied to one map at a time.
        teacher: The teacher backbone's maps [G * B, D, h, w].
        student: The student backbone's, per resolution.
        samples: ``crop``, ``view_size``, ``rot90`` of the batch.
        patch: Pixels per cell.
        heads_once: Apply necks and predictor once per view, still one view at a time, and not once for every pair that
            it is in.
    """
    batch = len(samples['rot90'])
    keep = cache if heads_once else lambda function: function
    where = [
        (r, i) for r, maps in enumerate(student) for i in range(len(maps) // batch)
    ]  # resolution and place of each view
    crops, matches, rotations = [], [], []
    for b in range(batch):
        crop, size, rot90 = (samples[key][b].tolist() for key in ('crop', 'view_size', 'rot90'))
        features = [student[r][i * batch + b] for r, i in where]  # [D, h, w]
        for x, turns in zip(features, rot90):
            logits = head.rotation(x.mean((1, 2)))
            rotations.append(-logits.log_softmax(0)[turns])

        @keep
        def prediction(v: int) -> Tensor:
            return head.predictor(student_neck(features[v][None]))[0]

        @keep
        @torch.no_grad()
        def target(q: int) -> Tensor:
            return teacher_neck(teacher[q * batch + b][None])[0]

        for q in range(len(teacher) // batch):
            for v, (r, _) in enumerate(where):
                shared = intersection(crop[q], crop[v])
                if v == q or shared is None:
                    continue
                boxes = [in_view(shared, crop[i], size[i], rot90[i]) for i in (q, v)]
                maps = target(q), prediction(v)
                crops.append(crop_loss(*maps, *boxes, rot90[v] - rot90[q], head.crop_cells[r], patch))
                matches.append(correspondence_loss(*maps, head.num_matches[r]))
    return dict(
        loss_crop=head.lambda_crop * sum(crops) / len(crops),
        loss_correspondence=head.lambda_correspondence * sum(matches) / len(matches),
        loss_rotation=head.lambda_rotation * sum(rotations) / len(rotations),
    )
