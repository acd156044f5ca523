"""The proxy for detection while pretraining runs."""

from typing import Dict, Optional, Sequence, Tuple

from mmpretrain.registry import HOOKS

from ...evaluation.frozen import FrozenBackbone
from ...evaluation.knn import majority_share
from ...evaluation.regions import region_proxy, region_split
from .frozen import FrozenMetricHook


@HOOKS.register_module()
class RegionProxyHook(FrozenMetricHook):
    """Class accuracy of regions, object against background, and masks, from frozen features (see
    :mod:`odis_mm.evaluation.regions`).

    Add it to any pretraining: ``--cfg-options +default_hooks.regions.type=RegionProxyHook
    +default_hooks.regions.data_root=DIR``.

    Args:
        data_root: Folder of the annotations and images; the defaults below it are COCO's.
        ann_files: COCO-style json of the train and of the val images, with categories.
        images: Their image folders.
        scales: Images are resized to squares of these sides, one feature a scale.
        max_images: At most so many training and validation images, evenly spread; None: all.
        per_image: At most so many objects of an image.
        k: Neighbours that vote.
        batch_size: Images a forward pass.
        num_workers: Processes per rank that decode.
        **kwargs: See :class:`FrozenMetricHook`.
    """

    name = 'regions'

    def __init__(
        self,
        data_root: str,
        ann_files: Sequence[str] = ('annotations/instances_train2017.json', 'annotations/instances_val2017.json'),
        images: Sequence[str] = ('train2017', 'val2017'),
        scales: Sequence[int] = (224,),
        max_images: Sequence[Optional[int]] = (800, 400),
        per_image: int = 10,
        k: int = 20,
        batch_size: int = 64,
        num_workers: int = 2,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.data = (data_root, ann_files, images, scales, max_images, per_image)
        self.measuring = dict(k=k, batch_size=batch_size, num_workers=num_workers)

    def prepare(self, frozen: FrozenBackbone) -> None:
        for size in self.data[3]:
            frozen.check_size(size)
        self.train, self.val = region_split(frozen, *self.data)

    def trivial(self) -> Dict[str, Tuple[str, float]]:
        classes = ('majority class', majority_share(self.val.labels()))
        return dict(object_token=classes, box_pool=classes, object_auc=('chance', 50.0))

    def describe(self, key: str) -> Tuple[str, str]:
        return {
            'object_token': ('class of an object, [OBJ]', f'{self.measuring["k"]}-NN accuracy (%)'),
            'box_pool': ('class of an object, pooled box', f'{self.measuring["k"]}-NN accuracy (%)'),
            'object_auc': ('object or background', 'area under the ROC curve (%)'),
            'mask_miou': ('mask of all objects, patches', 'mean IoU (%)'),
        }[key]

    def measure(self, frozen: FrozenBackbone) -> Dict[str, float]:
        return region_proxy(frozen, self.train, self.val, **self.measuring)
