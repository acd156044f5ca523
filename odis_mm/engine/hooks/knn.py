"""k-NN accuracy while pretraining runs."""

from typing import Dict, Optional, Sequence, Tuple

from mmpretrain.registry import HOOKS

from ...evaluation.frozen import FrozenBackbone
from ...evaluation.knn import knn_images, labelled_split, majority_share
from .frozen import FrozenMetricHook


@HOOKS.register_module()
class KNNHook(FrozenMetricHook):
    """k-NN on a labelled folder (``data_root/train/<class>/``, ``data_root/val/<class>/``), in percent.

    Add it to any pretraining: ``--cfg-options +default_hooks.knn.type=KNNHook +default_hooks.knn.data_root=DIR``.

    Args:
        data_root: The folder.
        ks: See :func:`knn_accuracy`.
        size: Side of the centre crop (protocol: 224).
        boxes: A json of objects for train and for val, which [OBJ] is told; '' for none.
        max_images: At most so many training and validation images, evenly spread; None: all.
        batch_size: Images a forward pass.
        num_workers: Processes per rank that decode.
        **kwargs: See :class:`FrozenMetricHook`.
    """

    name = 'knn'

    def __init__(
        self,
        data_root: str,
        ks: Sequence[int] = (10, 20),
        size: int = 224,
        boxes: Sequence[str] = ('', ''),
        max_images: Sequence[Optional[int]] = (10_000, 2_000),
        batch_size: int = 64,
        num_workers: int = 2,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.data_root, self.ks, self.size, self.boxes, self.max_images = data_root, ks, size, boxes, max_images
        self.loading = dict(batch_size=batch_size, num_workers=num_workers)

    def prepare(self, frozen: FrozenBackbone) -> None:
        frozen.check_size(self.size)
        self.train, self.val = labelled_split(self.data_root, frozen, self.size, self.boxes, self.max_images)

    def trivial(self) -> Dict[str, Tuple[str, float]]:
        share = majority_share(self.val.labels[index] for index in self.val.index)
        return {f'{feature}_{k}': ('majority class', share) for feature in ('token', 'patch_mean') for k in self.ks}

    def describe(self, key: str) -> Tuple[str, str]:
        feature, k = key.rsplit('_', 1)
        names = dict(token='class of an image, [OBJ] or [CLS]', patch_mean='class of an image, mean of patches')
        return names[feature], f'{k}-NN accuracy (%)'

    def measure(self, frozen: FrozenBackbone) -> Dict[str, float]:
        found = knn_images(frozen, self.train, self.val, self.ks, **self.loading)
        return {f'{feature}_{k}': accuracy for feature, by_k in found.items() for k, accuracy in by_k.items()}
