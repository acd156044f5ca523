"""The parts of a GTSA training step, and the same step with its losses and heads in their slow form
(``textbook_gtsa``)."""

from typing import Callable, Dict, List

import numpy as np
import torch
from mmpretrain.registry import TRANSFORMS

from ..datasets.transforms import PackViews, RenderViews, collate_views
from ..structures import ViewBatch
from . import textbook_gtsa


def make_batch(cfg, batch: int) -> dict:
    """Noise of 480 x 640 pixels, viewed as the config says."""
    steps = [TRANSFORMS.build(cfg.train_dataloader.dataset.pipeline[1]), RenderViews(), PackViews()]
    items = []
    for i in range(batch):
        rng = np.random.default_rng(i)
        item = dict(img=rng.integers(0, 256, (480, 640, 3), dtype=np.uint8), height=480, width=640, img_id=i, rng=rng)
        for step in steps:
            item = step(item)
        items.append(item)
    return collate_views(items)


def slow_losses(model, inputs: List[torch.Tensor], samples: dict, heads_once: bool) -> Dict[str, torch.Tensor]:
    """The backbones as in training, everything after them in the slow form."""
    student = [model._map(model._patches(model.backbone, x), x) for x in inputs]
    with torch.no_grad():
        teacher = model.extract_feat(inputs[0])
    return textbook_gtsa.losses(
        model.head, model.teacher['neck'], model.neck, teacher, student, samples, model.patch_size, heads_once
    )


def heads_alone(model, inputs: List[torch.Tensor], samples: dict) -> Callable[[], None]:
    """Necks, predictor, classifier, losses and their backward pass, on features that are there."""
    with torch.no_grad():
        tokens = [model._patches(model.backbone, x) for x in inputs]
        teacher_map = model.extract_feat(inputs[0])
    views = ViewBatch(*(samples[key] for key in ('crop', 'view_size', 'flip', 'rot90')))

    def step() -> None:
        features = [t.detach().requires_grad_() for t in tokens]
        student = [model.neck(model._map(t, x)) for t, x in zip(features, inputs)]
        with torch.no_grad():
            teacher = model.teacher['neck'](teacher_map)
        losses = model.head.map_losses(teacher, student, views, model.patch_size)
        losses.update(model.head.rotation_loss(torch.cat([t.mean(1) for t in features]), views.rot90.T.flatten()))
        total(losses).backward()

    return step


def total(losses: Dict[str, torch.Tensor]) -> torch.Tensor:
    return sum(value for key, value in losses.items() if 'loss' in key)
