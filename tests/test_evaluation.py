"""k-NN against scikit-learn; region features against by-hand ones."""
import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from test_models import make_vit

from odis_mm.evaluation import knn_accuracy, region_features, region_knn
from odis_mm.models import ViewPreprocessor


@pytest.mark.parametrize('k', [1, 10, 30])
def test_knn_equals_scikit_learn(k):
    g = torch.Generator().manual_seed(0)
    centers = torch.randn(5, 16, generator=g)
    labels, test_labels = torch.randint(0, 5, (300, ), generator=g), torch.randint(0, 5, (90, ), generator=g)
    train = centers[labels] + 2 * torch.randn(300, 16, generator=g)
    test = centers[test_labels] + 2 * torch.randn(90, 16, generator=g)
    oracle = KNeighborsClassifier(k, metric='cosine', algorithm='brute', weights=lambda d: np.exp((1 - d) / .07))
    expected = 100 * oracle.fit(train, labels).score(test, test_labels)
    got = knn_accuracy(train, labels, test, test_labels, ks=(k, ), chunk=32)[k]
    assert 20 < expected < 100 and got == pytest.approx(expected)


def test_knn_without_features_says_so():
    with pytest.raises(ValueError, match='0 to vote'):
        knn_accuracy(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), torch.ones(1, 4), torch.zeros(1, dtype=torch.long))




def sample(boxes, labels, seed=0):
    return dict(img=np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8), bboxes=np.array(boxes, np.float32), labels=labels)


def test_region_features_see_their_box():
    vit, preprocessor = make_vit(), ViewPreprocessor()
    boxes = [[0, 0, 9, 8], [8, 16, 16, 32]]
    images = [sample(boxes, [3, 1]), sample(np.zeros((0, 4)), [])]
    tokens, pooled, labels = region_features(vit, images, preprocessor, 32, batch_size=1)
    assert labels.tolist() == [3, 1]
    inputs = preprocessor(dict(inputs=torch.from_numpy(images[0]['img']).permute(2, 0, 1)[None]))['inputs']
    for i, patches in enumerate(([0, 1], [9, 13])):  # of the 4 x 4 grid
        mask = torch.zeros(1, 16, dtype=torch.bool)
        mask[0, patches] = True
        out = vit(inputs, mask)[-1].detach()
        torch.testing.assert_close(tokens[i], out[0, 0])
        torch.testing.assert_close(pooled[i], out[0, 1:][mask[0]].mean(0))
    with pytest.raises(ValueError, match='no labelled object'):
        region_features(vit, images[1:], preprocessor, 32)


def test_region_knn_finds_repeated_objects():
    vit = make_vit()
    train = [sample([[0, 0, 32, 32]], [i], seed=i) for i in range(4)]
    assert region_knn(vit, train, train, ViewPreprocessor(), 32, k=1) == dict(object_token=100., box_pool=100.)
