"""Data pieces of the detectors; they need mmdet's datasets, hence mmcv's compiled ops."""

from typing import Optional, Sequence

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmdet.datasets import CocoDataset
from mmdet.datasets.transforms import LoadAnnotations
from mmdet.models import DetDataPreprocessor
from mmdet.registry import DATASETS, MODELS, TRANSFORMS

from ..datasets.bad_images import BAD_SHARE, CountsBadImages, check_share
from ..datasets.demo import CLASSES, render_if_asked
from ..datasets.image_io import LoadObjectImage, Range, check_size, read_image
from ..utils.errors import BadImageError, ConfigError


@TRANSFORMS.register_module()
class LoadDetectionImage(BaseTransform):
    """Read ``img_path`` into ``img`` as pretraining does: the stored pixels, whatever EXIF says, of any number of
    channels and bits; three channels in the order BGR, which is mmdet's.

    Args:
        channels, window, percentiles: See :func:`~odis_mm.datasets.image_io.read_image`.

    Raises:
        BadImageError: the file cannot be read so, or is of another size than its annotation says.
    """

    def __init__(self, channels: int = 3, window: Range = None, percentiles: Range = None):
        LoadObjectImage(channels, window, percentiles)  # says what is wrong with them
        self.channels, self.window, self.percentiles = channels, window, percentiles

    def read(self, path: str) -> np.ndarray:
        """Return an image, uint8 [H, W, channels], RGB."""
        return read_image(path, self.channels, self.window, self.percentiles)

    def transform(self, results: dict) -> dict:
        img = self.read(results['img_path'])
        check_size(img, results)
        results['img'] = np.ascontiguousarray(img[..., ::-1]) if self.channels == 3 else img
        results['img_shape'] = results['ori_shape'] = img.shape[:2]
        return results


@MODELS.register_module()
class ChannelsPreprocessor(DetDataPreprocessor):
    """mmdet's ``DetDataPreprocessor`` for images of any number of channels, which keep their order.

    Args:
        mean, std: Per channel, in 0..255.
        **kwargs: See ``mmdet.DetDataPreprocessor``.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], **kwargs):
        super().__init__(**kwargs)
        self.register_buffer('mean', torch.tensor(mean).view(-1, 1, 1), False)
        self.register_buffer('std', torch.tensor(std).view(-1, 1, 1), False)
        self._enable_normalize = True


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
class DetectionDataset(CountsBadImages, CocoDataset):
    """mmdet's CocoDataset, in which another image takes the place of a bad one, as in pretraining.

    Args:
        max_bad_share: Share of the images that may be bad, and of three or more at least one. 0, or ``test_mode``: the
            first one raises, as an evaluation without it would be of other images.
        **kwargs: See ``mmdet.CocoDataset``.
    """

    def __init__(self, *args, max_bad_share: float = BAD_SHARE, test_mode: bool = False, **kwargs):
        self.max_bad_share = 0 if test_mode else check_share(max_bad_share)
        super().__init__(*args, test_mode=test_mode, **kwargs)

    def full_init(self) -> None:
        """Read the annotations, unless it is done."""
        if not self._fully_initialized:
            super().full_init()
            self.start_counting()

    def prepare_data(self, idx: int) -> Optional[dict]:
        """Return what the pipeline makes of an image; None, for which mmengine draws another one, if it is bad."""
        try:
            return super().prepare_data(idx)
        except BadImageError as error:
            if self.bad is None:
                raise
            self.count_bad(idx, error)
            return None


@DATASETS.register_module()
class DemoDetectionDataset(DetectionDataset):
    """The embedded demo set for detectors, rendered on first use.

    Args:
        data_root: Its folder; see :class:`~odis_mm.datasets.DemoObjectDataset` for where the set is rendered.
        ann_file: Below ``data_root``.
        **kwargs: See :class:`DetectionDataset`.
    """

    METAINFO = dict(
        classes=CLASSES,
        palette=[(220, 20, 60), (60, 180, 75), (0, 130, 200), (245, 130, 48), (145, 30, 180), (0, 128, 128)],
    )

    def __init__(self, *args, data_root: str, ann_file: str, **kwargs):
        render_if_asked(data_root)
        super().__init__(*args, data_root=data_root, ann_file=ann_file, **kwargs)
