"""Data pieces of the detectors; they need mmdet's datasets, hence mmcv's compiled ops."""

from mmdet.datasets import CocoDataset
from mmdet.datasets.transforms import LoadAnnotations
from mmdet.registry import DATASETS, TRANSFORMS

from ..datasets.demo import CLASSES, render_if_asked
from ..utils.errors import ConfigError


@TRANSFORMS.register_module()
class LoadBoxesAndMasks(LoadAnnotations):
    """mmdet's LoadAnnotations for Mask R-CNN; a box without a mask is named, instead of a KeyError from a worker.

    Raises:
        ConfigError: the image has an object with no segmentation.
    """

    def __init__(self, **kwargs):
        super().__init__(with_bbox=True, with_mask=True, **kwargs)

    def _process_masks(self, results: dict) -> list:
        bare = sum('mask' not in instance for instance in results.get('instances', ()))
        if bare:
            raise ConfigError(
                f'{results["img_path"]}: {bare} of {len(results["instances"])} objects have a box but '
                'no segmentation, which '
                'Mask R-CNN needs; for boxes alone take the faster-rcnn_* config of the same name.'
            )
        return super()._process_masks(results)


@DATASETS.register_module()
class DemoDetectionDataset(CocoDataset):
    """The embedded demo set for detectors, rendered on first use.

    Args:
        data_root: Its folder; see :class:`~odis_mm.datasets.DemoObjectDataset` for where the set is rendered.
        ann_file: Below ``data_root``.
        **kwargs: See ``mmdet.CocoDataset``.
    """

    METAINFO = dict(
        classes=CLASSES,
        palette=[(220, 20, 60), (60, 180, 75), (0, 130, 200), (245, 130, 48), (145, 30, 180), (0, 128, 128)],
    )

    def __init__(self, *args, data_root: str, ann_file: str, **kwargs):
        render_if_asked(data_root)
        super().__init__(*args, data_root=data_root, ann_file=ann_file, **kwargs)
