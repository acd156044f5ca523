"""Differential entropy of embeddings over the global batch, in its log-det form, with exact gradients across ranks."""

import torch
from mmengine.dist import get_dist_info, get_world_size
from torch import Tensor
from torch.distributed.nn.functional import all_reduce


def _sum_over_ranks(x: Tensor) -> Tensor:
    """All-reduce that back-propagates: what a rank puts in enters the result, hence the loss, of every rank.

    The gradient is therefore the sum over the ranks' losses; DDP's mean over ranks then gives that of one loss of the
    whole batch.
    """
    return all_reduce(x) if get_world_size() > 1 else x


def second_moment(z: Tensor) -> Tensor:
    """Return the smaller one of Z^T Z / n and Z Z^T / n, which share all eigenvalues that are not 0 (Sylvester).

    Args:
        z: [..., b, d], this rank's part of the embeddings Z [..., n, d]; all ranks have the same b (``EpochSampler``
            sees to it).

    Returns:
        float64 [..., m, m], m = min(n, d), the same on every rank. In float64 because TF32, where a user allows it,
        would leave a rank-deficient moment with negative eigenvalues; with min(n, d) of a few hundred it costs next to
        nothing.
    """
    rank, world = get_dist_info()
    local, channels = z.shape[-2:]
    n = world * local
    with torch.autocast(z.device.type, enabled=False):
        z = z.double()
        if n <= channels:  # n x d numbers to exchange, no more than the d x d of the other side
            every = z.new_zeros(*z.shape[:-2], n, channels)
            every[..., rank * local : (rank + 1) * local, :] = z
            every = _sum_over_ranks(every)
            return every @ every.mT / n
        return _sum_over_ranks(z.mT @ z) / n


def coding_length(moment: Tensor, channels: int, eps2: float) -> Tensor:
    """Return h(Z) = 1/2 log det(I + d/(n eps^2) Z^T Z), in nats: a Gaussian's differential entropy up to constants.

    Ma et al. 2007 (coding length, distortion eps); Liu et al. 2022 (maximum entropy coding). I + a positive
    semi-definite matrix has a Cholesky factor whatever the rank of Z: fewer images than channels, one image,
    duplicates.

    Args:
        moment: [..., m, m] from :func:`second_moment`.
        channels: d.
        eps2: eps^2, the allowed squared distortion of a unit vector.

    Returns:
        [...]; NaN where the embeddings hold NaN.
    """
    identity = torch.eye(moment.shape[-1], dtype=moment.dtype, device=moment.device)
    with torch.autocast(moment.device.type, enabled=False):
        factor, _ = torch.linalg.cholesky_ex(identity + channels / eps2 * moment)  # _ex: no wait for the device
    return factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)


@torch.no_grad()
def effective_rank(moment: Tensor) -> Tensor:
    """Return exp of the Shannon entropy of the spectrum's shares (Roy and Vetterli 2007, of eigenvalues): 1 collapsed,
    m isotropic.

    Args:
        moment: [..., m, m] from :func:`second_moment`, not centered: embeddings that are all alike count as rank 1.

    Returns:
        [...]; NaN where the embeddings hold NaN, or nothing but zeros.
    """
    finite = moment.isfinite().all(-1).all(-1)
    # eigvalsh raises an error for NaN, before a run could skip the step
    share = torch.linalg.eigvalsh(torch.where(finite[..., None, None], moment, 0.0)).clamp(min=0)
    share = share / share.sum(-1, keepdim=True)
    return torch.special.entr(share).sum(-1).exp()
