"""What ODIS, GTSA and ALFM share: a student, its EMA teacher, the teacher's update and its export."""

import copy
from abc import abstractmethod
from typing import Dict, List, Optional, Tuple

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule, ModuleDict
from mmpretrain.models import BaseSelfSupervisor, VisionTransformer
from mmpretrain.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...utils.distributed import whole
from ...utils.errors import ConfigError
from ...utils.schedules import cosine


class TeacherStudent(BaseSelfSupervisor):
    """Student = backbone + neck, trained; teacher = the same modules, theta_t <- m theta_t + (1-m) theta_s after each
    optimizer step.

    The teacher is what is evaluated and exported. It runs without drop path and dropout, and its buffers are its own:
    they are never overwritten with the student's.

    Args:
        backbone: Config of the student's backbone.
        neck: Config of the student's neck.
        head: Config of the head; it owns the loss and whatever the loss remembers.
        momentum: dict(start, end) of m in the papers' convention (near 1), on a cosine over all iterations (iBOT: 0.996
            -> 1).
        data_preprocessor: Config; default ``ViewPreprocessor``.
        anchor: For weights that are worth keeping: dict(kind, weight=1.0) adds ``loss_anchor``, the distance of the
            student's patches from those of the starting weights, on the first global view; see :func:`anchor_loss`. It
            costs a forward and backward pass of the student and a forward pass of the starting weights on a view of
            each image, and a copy of the backbone. None: no anchor.

    Raises:
        ConfigError: a momentum that falls or leaves [0, 1], another kind of anchor, or a backbone whose last block is
            not read.
    """

    # the term that compares distributions over prototypes: ln K is a uniform guess
    prototype_loss: Optional[str] = None
    prototype_weight = 1.0  # its weight in the sum of losses

    reads_object_token = False  # whether a loss reads it: else where it looks means nothing

    def __init__(
        self,
        backbone: dict,
        neck: dict,
        head: dict,
        momentum: dict = dict(start=0.996, end=1.0),
        data_preprocessor: Optional[dict] = None,
        anchor: Optional[dict] = None,
        init_cfg: Optional[dict] = None,
    ):
        preprocessor = data_preprocessor or {}
        if isinstance(preprocessor, dict):
            preprocessor = MODELS.build({'type': 'ViewPreprocessor', **preprocessor})
        super().__init__(backbone=backbone, neck=neck, head=head, data_preprocessor=preprocessor, init_cfg=init_cfg)
        self._check_parts(neck, head)
        ends = [momentum.get(key) for key in ('start', 'end')] if isinstance(momentum, dict) else [None]
        if not all(isinstance(end, (int, float)) for end in ends) or not 0 <= ends[0] <= ends[1] <= 1:
            raise ConfigError(
                'model.momentum is dict(start, end) and must rise from start to end within [0, 1] (the teacher keeps '
                f'this share), got {momentum}.'
            )
        self.momentum_cfg = momentum
        self.momentum = momentum['start']
        self.teacher = ModuleDict(dict(backbone=copy.deepcopy(self.backbone), neck=copy.deepcopy(self.neck)))
        self.teacher.requires_grad_(False)
        known = isinstance(anchor, dict) and not set(anchor) - {'kind', 'weight'} and anchor.get('kind') in ANCHORS
        if anchor is not None and not known:
            raise ConfigError(f'model.anchor is dict(kind={" or ".join(map(repr, ANCHORS))}, weight), got {anchor}.')
        self.anchor_cfg = None if anchor is None else {'weight': 1.0, **anchor}
        if anchor is not None:
            self.start = copy.deepcopy(self.backbone).requires_grad_(False)
        for backbone_of in (self.teacher['backbone'], getattr(self, 'start', None)):
            if backbone_of is not None and isinstance(backbone_of, BaseModule):
                backbone_of.init_cfg = None  # they are copied from the student: the file is read once
        self._ema_pairs: Optional[Tuple[List[Tensor], List[Tensor]]] = None
        self._progress_known = False
        self.train(self.training)

    def _check_parts(self, neck: dict, head: dict) -> None:
        backbone = self.backbone
        if isinstance(backbone, VisionTransformer) and backbone.num_layers - 1 not in backbone.out_indices:
            raise ConfigError(
                f'model.backbone.out_indices={backbone.out_indices}: a pretraining reads the last block, -1; '
                'those behind the last that is read would not be trained.'
            )
        for name, part in dict(neck=neck, head=head).items():
            if not isinstance(part, dict):
                raise ConfigError(f'model.{name} must be a dict, not {part!r}.')
            if isinstance(backbone, VisionTransformer):
                width = backbone.embed_dims
                if part.get('in_channels', width) != width:
                    raise ConfigError(
                        f'model.{name}.in_channels={part["in_channels"]}, but model.backbone is {width} wide: set '
                        f'model.{name}.in_channels={width}.'
                    )
        made, wanted = (getattr(part, 'num_prototypes', None) for part in (self.neck, self.head))
        if None not in (made, wanted) and made != wanted:  # a neck or head of one's own may have none
            raise ConfigError(
                f'model.neck has {made} prototypes and model.head ({type(self.head).__name__}) takes {wanted}: set '
                'num_prototypes of both to one number, and to 0 in the neck for an EmbeddingHead.'
            )

    @property
    def loss_hint(self) -> str:
        """What a reader of the log should know of the loss, a line; '' where it falls towards 0 as usual."""
        return getattr(self.head, 'loss_hint', '')

    def init_weights(self) -> None:
        """Initialise the student and copy it, parameters and buffers, to the teacher and the anchor."""
        super().init_weights()
        for name in ('backbone', 'neck'):
            self.teacher[name].load_state_dict(getattr(self, name).state_dict())
        if self.anchor_cfg is not None:
            self.start.load_state_dict(self.backbone.state_dict())

    def train(self, mode: bool = True):
        """Set the mode; the teacher stays in evaluation mode, but for batch norms, which need statistics of what they
        see, where the student's take them (``frozen_stages`` and ``norm_eval`` of a ResNet let its own stand)."""
        super().train(mode)
        if hasattr(self, 'teacher'):
            self.teacher.eval()
            if self.anchor_cfg is not None:
                self.start.eval()
            for name, twin in self.teacher.named_modules():
                if isinstance(twin, _BatchNorm):
                    twin.train(self.get_submodule(name).training)
        return self

    def set_progress(self, iteration: int, max_iters: int, iters_per_epoch: int) -> None:
        """Set what follows a schedule; called before each iteration (``SelfSupScheduleHook``)."""
        self._progress_known = True
        self.momentum = cosine(self.momentum_cfg['start'], self.momentum_cfg['end'], iteration, max_iters)
        if hasattr(self.head, 'set_epoch'):
            self.head.set_epoch(iteration / iters_per_epoch)

    def after_optimizer_step(self) -> None:
        """Move what follows the student: the teacher, and the head's running values (centers)."""
        self.update_teacher()
        if hasattr(self.head, 'step'):
            self.head.step()

    @torch.no_grad()
    def update_teacher(self) -> None:
        """Make one EMA step over all parameters at once; mmengine's averaged models take one tensor after another, and
        the buffers with them."""
        if self._ema_pairs is None:
            self._ema_pairs = self._pair_parameters()
        torch._foreach_lerp_(*self._ema_pairs, 1 - self.momentum)

    def _pair_parameters(self) -> Tuple[List[Tensor], List[Tensor]]:
        teacher, student = [], []
        for name in ('backbone', 'neck'):
            ours = dict(getattr(self, name).named_parameters())
            for key, value in self.teacher[name].named_parameters():
                teacher.append(value)
                student.append(ours.pop(key))
            if ours:
                raise RuntimeError(f'the teacher lacks the student parameters {sorted(ours)} of the {name}.')
        return teacher, student

    def _apply(self, fn, *args, **kwargs):  # .to(device) may replace the tensors of the pairs
        self._ema_pairs = None
        return super()._apply(fn, *args, **kwargs)

    def prototype_parameters(self) -> List[nn.Parameter]:
        """Return the student's parameters without a gradient in the first epochs; empty for a neck without
        prototypes."""
        return self.neck.prototype_parameters() if hasattr(self.neck, 'prototype_parameters') else []

    def branch(self, of: str = 'teacher') -> nn.Module:
        """Return the backbone of the 'teacher' or of the 'student', for measuring it."""
        return self.teacher['backbone'] if of == 'teacher' else self.backbone

    def watch_health(self) -> None:
        """Keep what the next forward pass of the teacher gives for :meth:`health`; without it, nothing is kept."""
        self.watched: List[Tensor] = []
        self._watching = self.teacher['backbone'].register_forward_hook(
            lambda module, args, output: self.watched.append(self.image_features(output))
        )
        if hasattr(self.head, 'watch_health'):
            self.head.watch_health()

    def image_features(self, output: Tuple[Tensor, ...]) -> Tensor:
        """Return one feature [n, D] per image from a backbone's output, tokens [n, T, D] or maps [n, D, h, w]: their
        mean."""
        last = output[-1]
        return last.mean(1) if last.ndim == 3 else last.flatten(2).mean(2)

    @torch.no_grad()
    def student_norm(self) -> Tensor:
        """Return the l2 norm of all parameters of backbone and neck."""
        return _norm(self._pair_parameters()[1])

    @torch.no_grad()
    def health(self) -> Dict[str, Tensor]:
        """Return figures of the iteration since :meth:`watch_health`, on this rank.

        Returns:
            ``student_norm``; ``EMA distance`` |s - t|/|t|; of at most 256 views ``feature rank``, exp of the entropy of
            the spectrum of their centered teacher features, and ``feature spread``, the share of the features' energy
            that is left after centering; what the head adds (``SoftTargetHead.health``).
        """
        self._watching.remove()
        teacher, student = self._pair_parameters()
        figures = {
            'student_norm': _norm(student),
            'EMA distance': _norm(torch._foreach_sub(student, teacher)) / _norm(teacher),
        }
        if hasattr(self.head, 'health'):
            figures.update(self.head.health())
        if self.watched and len(self.watched[0]) > 1 and self.watched[0].isfinite().all():  # else there is no spectrum
            x = self.watched.pop()[:256].float()
            centered = x - x.mean(0)
            share = torch.linalg.eigvalsh(centered @ centered.T).clamp(min=0)
            energy = share.sum()
            figures['feature rank'] = (
                torch.special.entr(share / energy.clamp(min=torch.finfo(x.dtype).tiny)).sum().exp()
            )
            figures['feature spread'] = energy / x.square().sum()
        return figures

    def teacher_backbone_state(self) -> Dict[str, Tensor]:
        """Return the tensors to export, under ``backbone.*``; of a sharded model all ranks must ask for them."""
        return {
            f'backbone.{key}': whole(value).detach().cpu()
            for key, value in self.teacher['backbone'].state_dict().items()
        }

    def loss(self, inputs: List[Tensor], data_samples: dict) -> Dict[str, Tensor]:
        """Return the method's losses for a collated batch (see ``collate_views``).

        Raises:
            ConfigError: nothing drives the schedules and the teacher: it would never move; or the views are no whole
                patches of a ViT.
        """
        if not self._progress_known:
            raise ConfigError(
                f'{type(self).__name__} is trained without its schedules, so its teacher would never move: add '
                "schedule=dict(type='SelfSupScheduleHook') to default_hooks (or call set_progress and "
                'after_optimizer_step yourself).'
            )
        if isinstance(self.backbone, VisionTransformer):
            self._check_views(inputs)
        losses = self.compute_losses(inputs, data_samples)
        if self.anchor_cfg is not None:
            losses['loss_anchor'] = self.anchor_cfg['weight'] * self._anchor(inputs[0], data_samples)
        return losses

    def _check_views(self, inputs: List[Tensor]) -> None:
        """Patches over the border would be padded, and what losses compare would lie elsewhere on the maps."""
        sides = self.backbone.patch_embed.projection.stride
        for height, width in (views.shape[-2:] for views in inputs):
            if height % sides[0] or width % sides[1]:
                raise ConfigError(
                    f'views of {height} x {width} pixels are no whole patches of model.backbone.patch_size={sides[0]}: '
                    'set size of the views, in the step of train_dataloader.dataset.pipeline that samples them, to '
                    'multiples of it, and patch_size there to the same number.'
                )

    def _anchor(self, views: Tensor, data_samples: dict) -> Tensor:
        """Of the first global view of each image, whole and unmasked; views are view-major."""
        images = len(data_samples['object_visible'] if 'object_visible' in data_samples else data_samples['crop'])
        views = views[:images]
        with torch.no_grad():
            wanted = _patches(self.start, views)
        return anchor_loss(_patches(self.backbone, views), wanted, self.anchor_cfg['kind'])

    @abstractmethod
    def compute_losses(self, inputs: List[Tensor], data_samples: dict) -> Dict[str, Tensor]:
        """Return what the method computes: keys that contain ``loss`` are summed and minimised, others are logged."""


ANCHORS = ('feature', 'gram')


def anchor_loss(patches: Tensor, wanted: Tensor, kind: str) -> Tensor:
    """Return how far patch features are from those of the starting weights.

    Args:
        patches: [B, N, D] of the student.
        wanted: The same of the starting weights.
        kind: 'feature': mean of 1 - cosine, patch by patch. 'gram': mean squared difference of the patches' cosines
            among each other within an image, which leaves features free to turn as a whole (DINOv3, arXiv 2508.10104).
    """
    patches, wanted = (F.normalize(part.float(), dim=-1) for part in (patches, wanted))
    if kind == 'feature':
        return 1 - (patches * wanted).sum(-1).mean()
    with torch.autocast(patches.device.type, enabled=False):  # it would take the products in half precision
        return (patches @ patches.mT - wanted @ wanted.mT).square().mean()


def _patches(backbone: nn.Module, images: Tensor) -> Tensor:
    """Patch features [B, N, D] of a ViT's tokens or a ConvNet's map."""
    out = backbone(images)[-1]
    return out.flatten(2).mT if out.ndim == 4 else out[:, backbone.num_leading_tokens :]


def _norm(tensors: List[Tensor]) -> Tensor:
    return whole(torch.stack(torch._foreach_norm(tensors)).float().norm())
