"""Similarities of the maps of two views of one image, for all pairs of one resolution at once (GTSA, arXiv
2304.08014)."""

from typing import Tuple

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce, get_world_size
from torch import Tensor

from ...structures import ViewPairs, turn_squares
from .align import align_boxes, sampling_weights

MAX_SIMILARITIES = 1 << 26  # numbers in one block of similarities between cells: 256 MB in float32


def crop_similarity(teacher: Tensor, student: Tensor, pairs: ViewPairs, size: int, patch: int) -> Tensor:
    """Return the mean cosine similarity, cell by cell, of what two views share: the teacher's crop is turned as the
    student's view is.

    Args:
        teacher: Maps [G * B, C, h, w] of the teacher's views (index ``q * B + b``), no gradient.
        student: Maps [V * B, C, h', w'] of the student's views of one resolution.
        pairs: The P pairs of these.
        size: Cells per side that the shared rectangle is brought to.
        patch: Pixels per cell of the maps.

    Returns:
        [P, B] in [-1, 1].
    """
    batch = pairs.turns.shape[1]
    image = torch.arange(batch, device=pairs.turns.device)

    def crops(maps: Tensor, view: Tensor, weights: Tensor) -> Tensor:
        return align_boxes(maps, weights, (view[:, None] * batch + image).flatten())  # [P*B, S*S, C]

    def weights(boxes: Tensor, maps: Tensor) -> Tensor:
        return sampling_weights(boxes.flatten(0, 1), size, maps.shape[-2:], patch)

    turned = turn_squares(weights(pairs.teacher_box, teacher), pairs.turns.flatten())
    target = crops(teacher, pairs.teacher, turned)
    cosine = F.cosine_similarity(crops(student, pairs.student, weights(pairs.student_box, student)), target, dim=-1)
    return cosine.mean(1).unflatten(0, (-1, batch))


def correspondence_similarity(
    teacher: Tensor, student: Tensor, pairs: ViewPairs, keep: int, max_similarities: int = MAX_SIMILARITIES
) -> Tensor:
    """Return the mean cosine similarity of the ``keep`` best matches of cells, student to teacher and teacher to
    student, averaged.

    Args:
        teacher: [G, B, M, C], the cells of the teacher's views, no gradient.
        student: [V, B, N, C], those of the student's views of one resolution.
        pairs: The P pairs of these; where the cells lie plays no role.
        keep: How many matches count, in either direction.
        max_similarities: Matches are searched in blocks of images with at most so many numbers, one image at least.

    Returns:
        [P, B] in [-1, 1].
    """
    teacher, student = F.normalize(teacher.float(), dim=-1), F.normalize(student.float(), dim=-1)
    step = max(1, max_similarities // (student[:, 0, :, 0].numel() * teacher[:, 0, :, 0].numel()))
    found = [best_matches(*block, pairs, keep) for block in zip(teacher.split(step, 1), student.split(step, 1))]
    teacher_cell, student_cell = (torch.cat(cells, 1) for cells in zip(*found))  # [P, B, 2 * keep]

    def rows(cells: Tensor, view: Tensor, index: Tensor) -> Tensor:
        image = torch.arange(cells.shape[1], device=cells.device)
        at = ((view[:, None] * cells.shape[1] + image)[..., None] * cells.shape[2] + index).flatten()
        return F.embedding(at, cells.flatten(0, 2))  # a gather of rows whose backward pass is fast on CPUs, too

    cosine = (rows(student, pairs.student, student_cell) * rows(teacher, pairs.teacher, teacher_cell)).sum(-1)
    return cosine.view(student_cell.shape).mean(-1)


@torch.no_grad()
def best_matches(teacher: Tensor, student: Tensor, pairs: ViewPairs, keep: int) -> Tuple[Tensor, Tensor]:
    """Return for cells of unit length the matched cells of teacher and student: int64 [P, b, 2 * keep] each.

    Of equally similar cells the first is taken, and of equal matches those of the first cells.
    """
    with torch.autocast(teacher.device.type, enabled=False):
        cosine = torch.einsum('vbnc,gbmc->bvngm', student, teacher)
    to_teacher, to_student = cosine.max(-1), cosine.max(2)  # [b, V, N, G], [b, V, G, M]
    values, partner = (x[:, pairs.student, :, pairs.teacher] for x in to_teacher)  # [P, b, N]
    student_cell = values.sort(dim=-1, descending=True, stable=True).indices[..., :keep]
    teacher_match = partner.gather(-1, student_cell)
    values, partner = (x[:, pairs.student, pairs.teacher].transpose(0, 1) for x in to_student)  # [P, b, M]
    teacher_cell = values.sort(dim=-1, descending=True, stable=True).indices[..., :keep]
    student_match = partner.gather(-1, teacher_cell)
    return torch.cat((teacher_match, teacher_cell), -1), torch.cat((student_cell, student_match), -1)


def overlap_weight(overlap: Tensor) -> Tensor:
    """Return the weights of pairs whose weighted sum is the mean over all pairs of the GLOBAL batch that share any
    area.

    Counted over the ranks, so that DDP's mean of gradients equals the gradient of one rank with the whole batch.

    Args:
        overlap: bool [P, B].
    """
    count = overlap.sum(dtype=torch.float32)
    all_reduce(count)
    return overlap * (get_world_size() / count.clamp(min=1))
