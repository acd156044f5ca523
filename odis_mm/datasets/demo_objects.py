"""The embedded demo set for pretraining."""

import os.path as osp

from mmpretrain.registry import DATASETS

from .demo import ensure_demo
from .objects import ObjectDataset


@DATASETS.register_module()
class DemoObjectDataset(ObjectDataset):
    """``ObjectDataset`` of the demo set, which is rendered on first use.

    Args:
        data_root: Its folder; if ``ann_file`` is not there, the set is rendered to it with the default parameters.
        ann_file: Below ``data_root``.
        **kwargs: See :class:`ObjectDataset`.
    """

    def __init__(self, data_root: str, ann_file: str, **kwargs):
        if not osp.isfile(osp.join(data_root, ann_file)):
            ensure_demo(data_root)
        super().__init__(data_root=data_root, ann_file=ann_file, **kwargs)
