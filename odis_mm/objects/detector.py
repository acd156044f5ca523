"""Objects from a detector of mmdet: what it calls them does not matter, only that it found them."""

from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from typing import List, Optional, Sequence

import cv2
import numpy as np

from ..utils.environment import check_operators
from ..utils.errors import CheckpointError, ConfigError
from ..utils.noise import quiet_imports
from .found import Found, encode, keep_best, useful


@dataclass
class Detector:
    """Source ``detector``. Images are read as the config reads those of its test.

    Args:
        config: File of an mmdet config.
        checkpoint: Its weights, read as data.
        rpn: The proposals of its RPN alone, without the heads that know classes.
        top, iou, min_side, max_area: As of ``classic``.
        min_score: Least score of an object.
        batch: Images at once.
        device: As torch names it.
    """

    config: str
    checkpoint: str
    rpn: bool = False
    top: int = 100
    iou: float = 0.7
    min_score: float = 0.05
    min_side: float = 0.0
    max_area: float = 1.0
    batch: int = 4
    device: str = 'cpu'
    name = 'detector'

    def __post_init__(self):
        self._model = None
        self._reading: Optional[dict] = None

    @property
    def reading(self) -> dict:
        """The options of ``LoadDetectionImage`` in the config."""
        if self._reading is None:
            from mmengine.config import Config

            with quiet_imports():  # a config may import mmdet
                cfg = Config.fromfile(self.config)
            if 'test_dataloader' not in cfg:
                raise ConfigError(f'{self.config} is no config of a detector: it has no test_dataloader; name another.')
            steps = cfg.test_dataloader.dataset.pipeline
            load = next((step for step in steps if step['type'].split('.')[-1] == 'LoadDetectionImage'), {})
            self._reading = {key: load[key] for key in ('channels', 'window', 'percentiles') if load.get(key)}
        return self._reading

    @property
    def on_gpu(self) -> bool:
        """Whether the model runs on a GPU, and so in one process."""
        return self.device != 'cpu'

    def __getstate__(self) -> dict:  # processes load the weights themselves
        return {**self.__dict__, '_model': None}

    def _load(self) -> None:
        from mmengine.config import Config
        from mmengine.dataset import Compose
        from mmengine.registry import DefaultScope

        from ..transfer import read_checkpoint

        check_operators(self.device)
        with quiet_imports():
            cfg = Config.fromfile(self.config)  # it may import mmdet
            from mmdet.registry import MODELS
            from mmdet.utils import register_all_modules

            register_all_modules(init_default_scope=False)
        state = read_checkpoint(self.checkpoint)
        state = state.get('state_dict', state)
        with DefaultScope.overwrite_default_scope('mmdet'):
            model = MODELS.build(cfg.model)
            steps = [
                step for step in cfg.test_dataloader.dataset.pipeline if step['type'].split('.')[-1] not in _FROM_FILES
            ]
            self._pipeline = Compose(steps)
        missing = [name for name in model.state_dict() if name not in state]
        if missing:
            raise CheckpointError(
                f'{self.checkpoint} is no checkpoint of {self.config}: {len(missing)} tensors are not in it, the first '
                f'is {missing[0]}.'
            )
        model.load_state_dict({name: state[name] for name in model.state_dict()})
        if self.rpn and not getattr(model, 'with_rpn', False):
            raise ConfigError(f'{type(model).__name__} of {self.config} has no RPN: leave out --rpn.')
        self._model = model.to(self.device).eval()

    def __call__(self, images: Sequence[np.ndarray]) -> List[Found]:
        if self._model is None:
            self._load()
        found = []
        for start in range(0, len(images), self.batch):
            found += self._detect(images[start : start + self.batch])
        return found

    def _detect(self, images: Sequence[np.ndarray]) -> List[Found]:
        import torch

        items, places = [], []
        for i, image in enumerate(images):
            size = image.shape[:2]
            pixels = np.ascontiguousarray(image[..., ::-1] if image.shape[2] == 3 else image)
            with suppress(cv2.error):  # of mmcv's resizing: so thin that no pixel is left, and nothing is found
                items.append(self._pipeline(dict(img=pixels, img_id=i, img_path='', img_shape=size, ori_shape=size)))
                places.append(i)
        results = []
        with torch.no_grad():
            # a ViT sees what pads an image to the size of another one: what is found in it would depend on the others
            for _, alike in groupby(items, lambda item: item['inputs'].shape):
                results += self._results(list(alike))
        found = [Found(np.zeros((0, 4)), np.zeros(0)) for _ in images]
        for i, result in zip(places, results):
            found[i] = self._found(images[i], result.cpu())
        return found

    def _results(self, items: Sequence[dict]) -> list:
        """What mmdet finds in images of one size."""
        batch = {key: [item[key] for item in items] for key in items[0]}
        if not self.rpn:
            return [sample.pred_instances for sample in self._model.test_step(batch)]
        data = self._model.data_preprocessor(batch, False)
        return self._model.rpn_head.predict(
            self._model.extract_feat(data['inputs']), data['data_samples'], rescale=True
        )

    def _found(self, image: np.ndarray, result) -> Found:
        height, width = image.shape[:2]
        boxes = result.bboxes.numpy().astype(float).clip(0, np.tile([width, height], 2))
        scores = result.scores.numpy().astype(float)
        good = np.flatnonzero((scores >= self.min_score) & useful(boxes, height, width, self.min_side, self.max_area))
        kept = good[keep_best(boxes[good], scores[good], self.iou, self.top)]
        masks = None
        if 'masks' in result:
            masks = [encode(result.masks[i].numpy(), height, width) for i in kept.tolist()]
        return Found(boxes[kept], scores[kept], masks)


_FROM_FILES = ('LoadDetectionImage', 'LoadImageFromFile', 'LoadAnnotations', 'LoadImageFromNDArray')
