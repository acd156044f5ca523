"""Weighted k-NN on frozen features, the protocol of DINO and iBOT."""
from typing import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def knn_accuracy(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, ks: Sequence[int] = (10, 20, 100, 200),
                 temperature: float = 0.07, chunk: int = 4096) -> dict:
    """Share of test features whose class wins the vote of their k nearest training features.

    Votes weigh exp(cosine similarity/temperature) (DINO, arXiv 2104.14294; the authors' k are the default).

    Args:
        train: [n, D], any scale: both sides are l2-normalised here.
        train_labels: int64 [n].
        test: [m, D].
        test_labels: int64 [m].
        ks: Values of k; those above n are left out.
        temperature: 0.07.
        chunk: Test features per block: bounds the memory at chunk x n similarities.

    Returns:
        ``{k: accuracy in percent}``.

    Raises:
        ValueError: if there is nothing to vote or to classify.
    """
    if not len(train) or not len(test):
        raise ValueError(f'k-NN needs features on both sides, got {len(train)} to vote and {len(test)} to classify.')
    ks = [k for k in ks if k <= len(train)] or [len(train)]
    train, test = F.normalize(train.float(), dim=-1), F.normalize(test.float(), dim=-1)
    num_classes = int(max(train_labels.max(), test_labels.max())) + 1
    hits = dict.fromkeys(ks, 0)
    for block, labels in zip(test.split(chunk), test_labels.split(chunk)):
        similarity, index = (block @ train.T).topk(max(ks), dim=-1)  # [c, k]
        votes = F.one_hot(train_labels[index], num_classes) * (similarity / temperature).exp().unsqueeze(-1)
        for k in ks:
            hits[k] += int((votes[:, :k].sum(1).argmax(-1) == labels).sum())
    return {k: 100 * hit / len(test) for k, hit in hits.items()}
