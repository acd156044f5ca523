"""Pictures of boxes that can be read, on small images too."""

import colorsys
from typing import Any, List, Optional, Sequence, Tuple

import cv2
import numpy as np
from mmdet.registry import VISUALIZERS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import get_box_tensor
from mmdet.visualization import DetLocalVisualizer
from mmengine.structures import InstanceData

Colour = Tuple[int, int, int]
SHORT_SIDE = 480  # pixels of a picture at least; a smaller image is enlarged to be drawn on
LONG_SIDE = 2000  # but a narrow one no further than this
COLOURS: Tuple[Colour, ...] = (  # far from each other, and from most photographs
    (230, 25, 75),
    (60, 180, 75),
    (0, 130, 200),
    (245, 130, 48),
    (145, 30, 180),
    (70, 240, 240),
    (240, 50, 230),
    (210, 245, 60),
    (170, 110, 40),
    (255, 225, 25),
    (128, 0, 0),
    (170, 255, 195),
    (0, 0, 128),
    (250, 190, 212),
    (128, 128, 0),
)


def class_colours(count: int) -> List[Colour]:
    """Return RGB colours, that of a class always the same, whatever the number of classes."""
    further = [
        colorsys.hsv_to_rgb(0.618 * i % 1, 0.6 + 0.35 * (i % 2), 0.65 + 0.3 * (i % 3 > 0))
        for i in range(len(COLOURS), count)
    ]
    return [*COLOURS[:count], *((round(255 * r), round(255 * g), round(255 * b)) for r, g, b in further)]


@VISUALIZERS.register_module()
class BoxVisualizer(DetLocalVisualizer):
    """mmdet's visualizer, whose labels have a size that fits the picture and say class and score (0 to 1), and whose
    classes each have a colour of their own, the same in every run.

    Images with a short side below ``SHORT_SIDE`` are enlarged. A palette that a data set brings for its own classes is
    kept; that of COCO's 80 classes, which other data sets inherit in mmdet, is not.
    """

    def add_datasample(
        self,
        name: str,
        image: np.ndarray,
        data_sample: Optional[DetDataSample] = None,
        draw_gt: bool = True,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        # beside a picture that is enlarged mmdet would put the image as it is, where nothing is annotated
        annotated = data_sample is not None and 'gt_instances' in data_sample
        super().add_datasample(name, image, data_sample, draw_gt and annotated, *args, **kwargs)

    def _draw_instances(
        self,
        image: np.ndarray,
        instances: InstanceData,
        classes: Optional[Sequence[str]],
        palette: Optional[Sequence[Colour]],
    ) -> np.ndarray:
        height, width = image.shape[:2]
        factor = max(min(SHORT_SIDE / min(height, width), LONG_SIDE / max(height, width)), 1.0)
        size = (round(factor * width), round(factor * height))
        self.set_image(cv2.resize(image, size, interpolation=cv2.INTER_CUBIC) if factor > 1 else image)
        if not len(instances):
            return self.get_image()
        labels = np.asarray(instances.labels)
        names = list(classes or [f'class {i}' for i in range(labels.max() + 1)])
        own = isinstance(palette, (list, tuple)) and len(palette) == len(names)
        colours = [tuple(colour) for colour in palette] if own else class_colours(len(names))
        texts = [names[label] for label in labels]
        order = np.arange(len(labels))
        if 'scores' in instances:  # the annotated boxes have none
            scores = np.asarray(instances.scores)
            texts = [f'{text} {score:.2f}' for text, score in zip(texts, scores)]
            order = np.argsort(scores, kind='stable')  # the surest on top
        if 'masks' in instances:
            masks = instances.masks
            masks = np.asarray(masks.to_ndarray() if hasattr(masks, 'to_ndarray') else masks).astype(np.uint8)
            for i in order:
                mask = cv2.resize(masks[i], size, interpolation=cv2.INTER_NEAREST).astype(bool)
                self.draw_binary_masks(mask, colors=colours[labels[i]], alphas=0.4)
        boxes = get_box_tensor(instances.bboxes).numpy() * np.float64([size[0] / width, size[1] / height] * 2)
        for i in order:
            self._draw_box(boxes[i], texts[i], colours[labels[i]])
        return self.get_image()

    def _draw_box(self, box: np.ndarray, text: str, colour: Colour) -> None:
        """Draw a box (x1, y1, x2, y2), its label above it or, at the upper edge of the picture, inside."""
        x1, y1, x2, y2 = box.clip(0, [self.width, self.height] * 2)
        letter = min(self.width, self.height) / 40  # height in pixels
        line = letter / 6
        self.draw_bboxes(np.array([x1, y1, x2, y2]), edge_colors=colour, line_widths=line, alpha=1.0)
        light = np.dot(colour, (0.299, 0.587, 0.114)) > 140  # luma of Rec. 601
        above = y1 > 1.7 * letter
        self.draw_texts(
            text.replace('$', r'\$'),  # which would begin a formula
            np.array(
                [max(min(x1 + line, self.width - 0.65 * letter * len(text)), 0), y1 - line if above else y1 + line]
            ),
            font_sizes=letter * 72 / self.dpi,
            colors='black' if light else 'white',
            vertical_alignments='bottom' if above else 'top',
            bboxes=dict(facecolor=np.divide(colour, 255), alpha=0.75, pad=letter / 12, edgecolor='none'),
        )
