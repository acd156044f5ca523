"""mmdet's inferencer for image files as they are: any kind that training reads, damaged ones named and left out."""

from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence, Tuple

import cv2
import numpy as np
from mmdet.apis import DetInferencer
from mmdet.structures.mask import encode_mask_results
from mmengine.config import Config
from mmengine.registry import TRANSFORMS
from pycocotools import mask as coco_mask

from ..datasets.files import shown
from ..datasets.image_io import as_colours, size_of
from ..utils.errors import BadImageError
from .data import LoadDetectionImage
from .drawing import BoxVisualizer


class FileInferencer(DetInferencer):
    """mmdet's ``DetInferencer`` that reads images as the config's test pipeline does, and gives dicts of COCO style.

    Args:
        cfg: Of a detector.
        names: Of the pictures, by the image's path; each gets one under this name.
        **kwargs: See ``mmdet.DetInferencer``.

    Attributes:
        bad: What is wrong with each image that was left out, a sentence each.
        found: Path, height and width, and annotations of each image.
    """

    def __init__(self, cfg: Config, names: Dict[str, str], **kwargs: Any):
        self.names = names
        self.bad: List[str] = []
        self.found: List[Tuple[str, Tuple[int, int], List[dict]]] = []
        super().__init__(cfg, **kwargs)

    def _init_pipeline(self, cfg: Config):
        steps = cfg.test_dataloader.dataset.pipeline
        load = next((step for step in steps if str(step['type']).endswith('LoadDetectionImage')), None)
        reader = None if load is None else TRANSFORMS.build(dict(load, type=LoadDetectionImage))
        if load is not None:
            load.clear()
            load.type = 'LoadImageFromFile'  # which is what mmdet looks for, to put its own in its place
        pipeline = super()._init_pipeline(cfg)
        step = next(step for step in pipeline.transforms if hasattr(step, 'from_file'))
        self.load = step.from_file = reader or step.from_file
        return pipeline

    def _init_visualizer(self, cfg: Config) -> BoxVisualizer:
        # whatever the detector was trained with; without backends, as the pictures are written here
        cfg.visualizer = dict(type='mmdet.BoxVisualizer')
        return super()._init_visualizer(cfg)

    def _get_chunk_data(self, inputs: Sequence[str], chunk_size: int) -> Iterator[List[tuple]]:
        chunk: List[tuple] = []
        for path in inputs:
            try:
                item = self.pipeline(path)
            except BadImageError as error:
                self.bad.append(str(error))
                continue
            except cv2.error:  # of mmcv's resizing: a side of no pixel
                height, width = size_of(path)
                self.bad.append(
                    f'image {shown(path)} is {width} x {height} pixels, too thin to resize: cut it into pieces'
                )
                continue
            # a ViT sees what pads an image to the size of another one: what is found in it would depend on the others
            if chunk and (len(chunk) == chunk_size or item['inputs'].shape != chunk[0][1]['inputs'].shape):
                yield chunk
                chunk = []
            chunk.append((path, item))
        if chunk:
            yield chunk

    def visualize(  # type: ignore[override]
        self, inputs: Sequence[str], preds: Sequence, pred_score_thr: float = 0.3, img_out_dir: str = '', **kwargs: Any
    ) -> None:
        for path, prediction in zip(inputs, preds):
            pixels = self.load(dict(img_path=path))['img']  # as the detector saw it, turned by EXIF or not
            pixels = np.ascontiguousarray(as_colours(pixels[..., ::-1] if pixels.shape[2] == 3 else pixels))
            self.visualizer.add_datasample(
                self.names[path],
                pixels,
                prediction,
                draw_gt=False,
                pred_score_thr=pred_score_thr,
                out_file=str(Path(img_out_dir, 'vis', self.names[path])),
            )
            self.found.append((path, prediction.ori_shape, _annotations(prediction.pred_instances)))

    def postprocess(self, preds: Sequence, *args: Any, **kwargs: Any) -> dict:
        return dict(predictions=[], visualization=None)  # what is kept is in ``found``


def _annotations(instances: Any) -> List[dict]:
    instances = instances.cpu().numpy()
    masks = encode_mask_results(instances.masks) if 'masks' in instances else None
    found = []
    for i, (label, score, box) in enumerate(zip(instances.labels, instances.scores, instances.bboxes)):
        x1, y1, x2, y2 = (round(value, 2) for value in box.tolist())
        entry = dict(
            category_id=int(label),
            bbox=[x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)],
            area=round((x2 - x1) * (y2 - y1), 2),
            iscrowd=0,
            score=round(float(score), 4),
        )
        if masks is not None:
            entry['segmentation'] = {**masks[i], 'counts': masks[i]['counts'].decode()}
            entry['area'] = float(coco_mask.area(masks[i]))
        found.append(entry)
    return found
