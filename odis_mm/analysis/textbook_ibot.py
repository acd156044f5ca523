"""iBOT's training step as its equations read (arXiv 2111.07832, eq. 1-3; DINO, arXiv 2104.14294, eq. 1-4), as a
yardstick of speed."""

from typing import Dict, List, Optional, Tuple

import torch
from torch import Tensor, nn

from ..utils.errors import ConfigError


class TextbookIBOT:
    """The losses of an ODIS model without object masks, computed the plain way, on that model's own weights.

    Attention builds the N x N matrix, neck and prototypes see every patch of the global views in teacher and student,
    views are compared pair by pair, the teacher follows parameter by parameter.

    Args:
        model: An ``ODIS`` with one leading token and the patch loss.

    Raises:
        ConfigError: for another model.
    """

    def __init__(self, model: nn.Module):
        if model.backbone.num_leading_tokens != 1 or not model.lambda_patch or model.head.balance != 'center':
            raise ConfigError(
                'the textbook step has one [CLS] token, a patch loss and centering: take an ODIS or iBOT config with '
                "num_object_tokens=1, lambda_patch above 0 and head.balance='center'."
            )
        self.model = model

    def compute_losses(self, inputs: List[Tensor], data_samples: dict) -> Dict[str, Tensor]:
        """See ``ODIS.compute_losses``; ``mim_mask`` [G * B, N] is all it reads of the samples."""
        model, mask = self.model, data_samples['mim_mask']
        batch = len(data_samples['object_visible'])
        student = [
            _features(model.backbone, views, (mask, model.mask_token) if i == 0 else None)
            for i, views in enumerate(inputs)
        ]
        with torch.no_grad():
            teacher = _features(model.teacher['backbone'], inputs[0])
            teacher_logits = model.teacher['neck'](teacher)  # [G*B, 1+N, K]
            targets_cls = self._targets(teacher_logits[:, 0], model.head.token_center)
            targets = self._targets(teacher_logits[:, 1:], model.head.patch_center)
        global_logits = model.neck(student[0])  # [G*B, 1+N, K]
        cls = list(global_logits[:, 0].split(batch))
        for tokens in student[1:]:
            cls += model.neck(tokens[:, 0]).split(batch)

        pairs = [
            self._cross_entropy(q, p).mean()
            for i, q in enumerate(targets_cls.split(batch))
            for j, p in enumerate(cls)
            if i != j
        ]
        patches = self._cross_entropy(targets, global_logits[:, 1:])  # [G*B, N]
        patches = (patches * mask).sum(1) / mask.sum(1).clamp(min=1)
        return dict(loss_obj=sum(pairs) / len(pairs), loss_patch=model.lambda_patch * patches.mean())

    def _targets(self, logits: Tensor, center: nn.Module) -> Tensor:
        center.observe(logits)
        return torch.softmax((logits.float() - center.value) / self.model.head.teacher_temp, dim=-1)

    def _cross_entropy(self, target: Tensor, logits: Tensor) -> Tensor:
        return -(target * torch.log_softmax(logits.float() / self.model.head.student_temp, dim=-1)).sum(-1)

    @torch.no_grad()
    def after_optimizer_step(self) -> None:
        """theta_t <- m theta_t + (1 - m) theta_s, one parameter after the other; then the centers."""
        for name in ('backbone', 'neck'):
            for teacher, student in zip(self.model.teacher[name].parameters(), getattr(self.model, name).parameters()):
                teacher.mul_(self.model.momentum).add_(student, alpha=1 - self.model.momentum)
        self.model.head.step()


def _features(vit: nn.Module, images: Tensor, replace: Optional[Tuple[Tensor, Tensor]] = None) -> Tensor:
    x, _ = vit.embed(images, replace)
    for layer in vit.layers:
        x = x + _attention(layer.attn, layer.ln1(x))
        x = layer.ffn(layer.ln2(x), identity=x)
    return vit.ln1(x)


def _attention(attn: nn.Module, x: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for x [B, T, D], the [B, heads, T, T] matrix written out."""
    q, k, v = attn.qkv(x).unflatten(-1, (3, attn.num_heads, attn.head_dims)).permute(2, 0, 3, 1, 4)  # [B, heads, T, d]
    weights = (q @ k.transpose(-2, -1) * attn.head_dims**-0.5).softmax(-1)
    out = (weights @ v).transpose(1, 2).flatten(2)
    return attn.out_drop(attn.gamma1(attn.proj_drop(attn.proj(out))))
