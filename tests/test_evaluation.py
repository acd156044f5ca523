"""k-NN against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from odis_mm.evaluation import knn_accuracy


@pytest.mark.parametrize('k', [1, 10, 30])
def test_knn_equals_scikit_learn(k):
    g = torch.Generator().manual_seed(0)
    centers = torch.randn(5, 16, generator=g)
    labels, test_labels = torch.randint(0, 5, (300,), generator=g), torch.randint(0, 5, (90,), generator=g)
    train = centers[labels] + 2 * torch.randn(300, 16, generator=g)
    test = centers[test_labels] + 2 * torch.randn(90, 16, generator=g)
    oracle = KNeighborsClassifier(k, metric='cosine', algorithm='brute', weights=lambda d: np.exp((1 - d) / 0.07))
    expected = 100 * oracle.fit(train, labels).score(test, test_labels)
    got = knn_accuracy(train, labels, test, test_labels, ks=(k,), chunk=32)[k]
    assert 20 < expected < 100 and got == pytest.approx(expected)


def test_knn_without_features_says_so():
    with pytest.raises(ValueError, match='0 to vote'):
        knn_accuracy(
            torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), torch.ones(1, 4), torch.zeros(1, dtype=torch.long)
        )
