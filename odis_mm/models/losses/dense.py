"""Similarities of the maps of two views of one image, for all pairs of one resolution at once (GTSA, arXiv
2304.08014)."""

from typing import Tuple

import torch
from mmengine.dist import all_reduce, get_world_size
from torch import Tensor

from ...structures import ViewPairs, turn_squares
from ..linear import product
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
    cells = crops(student, pairs.student, weights(pairs.student_box, student))
    # with fewer passes over the cells, forward and backward, than F.cosine_similarity, which divides all of them
    lengths = cells.norm(dim=-1).clamp(min=1e-8) * target.norm(dim=-1).clamp(min=1e-8)
    return ((cells * target).sum(-1) / lengths).mean(1).unflatten(0, (-1, batch))


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
    step = max(1, max_similarities // (student[:, 0, :, 0].numel() * teacher[:, 0, :, 0].numel()))
    blocks = zip(teacher.split(step, 1), student.split(step, 1))
    return torch.cat([_matched_similarity(*block, pairs, keep) for block in blocks], 1)


def _matched_similarity(teacher: Tensor, student: Tensor, pairs: ViewPairs, keep: int) -> Tensor:
    """[P, b] of the cells [G, b, M, C] and [V, b, N, C], which are divided by their lengths after the products, as
    these are far fewer numbers."""
    cells = [x.shape[2] for x in (student, teacher)]
    student, teacher = (
        x.transpose(0, 1).to(torch.float32, memory_format=torch.contiguous_format).flatten(1, 2)
        for x in (student, teacher)
    )
    with torch.autocast(teacher.device.type, enabled=False):
        products = product(student, teacher.mT)  # [b, V * N, G * M]
    scales = [1 / x.norm(dim=-1).clamp(min=1e-12) for x in (student, teacher)]  # [b, V * N], [b, G * M]
    with torch.no_grad():
        cosine = products * scales[0][:, :, None] * scales[1][:, None]
        found = best_matches(cosine.unflatten(2, (-1, cells[1])).unflatten(1, (-1, cells[0])), pairs, keep)
    views = (pairs.student, pairs.teacher)
    rows, columns = (view[:, None, None] * n + cell for view, n, cell in zip(views, cells, found))  # [P, b, 2 * keep]

    def pick(values: Tensor, at: Tensor) -> Tensor:  # of each image's values, flat
        first = torch.arange(len(values), device=values.device)[:, None] * values[0].numel()
        return values.flatten().index_select(0, (at + first).flatten()).view(at.shape)

    similarity = pick(products, rows * products.shape[2] + columns) * pick(scales[0], rows) * pick(scales[1], columns)
    return similarity.mean(-1)


@torch.no_grad()
def best_matches(cosine: Tensor, pairs: ViewPairs, keep: int) -> Tuple[Tensor, Tensor]:
    """Return the matched cells of student and teacher, int64 [P, b, 2 * keep] each, by the similarities [b, V, N, G, M]
    of all cells.

    Of equally similar cells the first is taken, and of equal matches those of the first cells.
    """
    to_teacher, to_student = cosine.max(-1), cosine.max(2)  # [b, V, N, G], [b, V, G, M]
    values, partner = (x[:, pairs.student, :, pairs.teacher] for x in to_teacher)  # [P, b, N]
    student_cell = values.sort(dim=-1, descending=True, stable=True).indices[..., :keep]
    teacher_match = partner.gather(-1, student_cell)
    values, partner = (x[:, pairs.student, pairs.teacher].transpose(0, 1) for x in to_student)  # [P, b, M]
    teacher_cell = values.sort(dim=-1, descending=True, stable=True).indices[..., :keep]
    student_match = partner.gather(-1, teacher_cell)
    return torch.cat((student_cell, student_match), -1), torch.cat((teacher_match, teacher_cell), -1)


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
