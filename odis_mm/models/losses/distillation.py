"""Cross-entropies between a teacher's and a student's prototype distributions, normalised over the global batch."""

from typing import Optional

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce, get_world_size
from torch import Tensor


def pairwise_cross_entropy(
    teacher: Tensor, student_logits: Tensor, temperature: float, visible: Optional[Tensor] = None
) -> Tensor:
    """Return the mean of H(P_t(q), P_s(v)) over the pairs of a teacher view q and another view v (DINO eq. 3; ODIS:
    L_obj).

    Within a pair the mean is over the images of the GLOBAL batch whose object is visible in both views: the counts are
    summed over the ranks, so that DDP's gradient mean over ranks equals the gradient of one rank with the whole batch.

    Args:
        teacher: Probabilities [G, B, k, K], k tokens per image, no gradient.
        student_logits: [V, B, k, K]; the first G of the V views are the teacher's.
        temperature: Student temperature.
        visible: bool [B, V]; None: all.

    Returns:
        Scalar; 0 (with a graph) if no pair has a visible image.
    """
    with torch.autocast(student_logits.device.type, enabled=False):  # it would take the products in half precision
        log_p = F.log_softmax(student_logits.float() / temperature, dim=-1)
        entropy = -torch.einsum('gbtk,vbtk->gvb', teacher, log_p) / teacher.shape[2]  # [G, V, B]
    num_global, num_views, batch = entropy.shape
    other = ~torch.eye(num_global, num_views, dtype=torch.bool, device=entropy.device)
    valid = other[:, :, None].expand(-1, -1, batch)
    if visible is not None:
        seen = visible.T  # [V, B]
        valid = valid & seen[:num_global, None] & seen[None]
    count = valid.sum(-1, dtype=torch.float32)  # [G, V]
    all_reduce(count)
    per_pair = (entropy * valid).sum(-1) * get_world_size() / count.clamp(min=1)
    return per_pair.sum() / (count > 0).sum().clamp(min=1)


def patch_cross_entropy(teacher: Tensor, student_logits: Tensor, temperature: float, weight: Tensor) -> Tensor:
    """Return L_patch of iBOT (eq. 2): sum over masked patches of weight x H(P_t, P_s).

    Args:
        teacher: Probabilities [M, K] of the masked patches, no gradient.
        student_logits: [M, K].
        temperature: Student temperature.
        weight: [M]; 1/(masked patches of that image and view x images x global views), so that the sum is a mean over
            views and images with each image normalised by its own number of masked patches.
    """
    with torch.autocast(student_logits.device.type, enabled=False):
        log_p = F.log_softmax(student_logits.float() / temperature, dim=-1)
        return -(torch.linalg.vecdot(teacher, log_p) * weight).sum()
