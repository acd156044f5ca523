"""The parts of a GTSA training step, and the same step with its losses and heads in their slow form
(``textbook_gtsa``)."""

from typing import Callable, Dict, List

import torch

from ..structures import ViewBatch
from . import textbook_gtsa


def slow_losses(model, inputs: List[torch.Tensor], samples: dict, heads_once: bool) -> Dict[str, torch.Tensor]:
    """The backbones as in training, everything after them in the slow form."""
    student = [model.backbone.to_map(model.backbone(x)[-1], x.shape[-2:]) for x in inputs]
    with torch.no_grad():
        teacher = model.extract_feat(inputs[0])
    return textbook_gtsa.losses(
        model.head, model.teacher['neck'], model.neck, teacher, student, samples, model.patch_size, heads_once
    )


def heads_alone(model, inputs: List[torch.Tensor], samples: dict) -> Callable[..., Dict[str, torch.Tensor]]:
    """Necks, predictor, classifier and losses, on features that are there: a function of the arguments of
    ``compute_losses``, which does not read the images."""
    with torch.no_grad():
        tokens = [model.backbone(x)[-1] for x in inputs]
        teacher_map = model.extract_feat(inputs[0])
    views = ViewBatch(*(samples[key] for key in ('crop', 'view_size', 'flip', 'rot90')))

    def losses(*_) -> Dict[str, torch.Tensor]:
        features = [t.detach().requires_grad_() for t in tokens]
        student = [model.neck(model.backbone.to_map(t, x.shape[-2:])) for t, x in zip(features, inputs)]
        with torch.no_grad():
            teacher = model.teacher['neck'](teacher_map)
        found = model.head.map_losses(teacher, student, views, model.patch_size)
        pooled = torch.cat([t[:, model.backbone.num_leading_tokens :].mean(1) for t in features])
        found.update(model.head.rotation_loss(pooled, views.rot90.T.flatten()))
        return found

    return losses
