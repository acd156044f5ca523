"""Tensors and models that may be spread over ranks."""

from typing import Any, Optional, cast

from mmengine.dist import is_main_process
from mmengine.model import is_model_wrapper
from mmengine.utils import apply_to
from torch import Tensor, nn


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside a DDP or FSDP wrapper, or the model itself."""
    return cast(nn.Module, model.module) if is_model_wrapper(model) else model


def whole(tensor: Tensor) -> Tensor:
    """Return the tensor itself, or all of it where this rank has a part: then all ranks must call this."""
    return tensor.full_tensor() if hasattr(tensor, 'full_tensor') else tensor


def gather(state: Any) -> Any:
    """Return a nest of dicts and lists with whole tensors, on the first rank's CPU; other ranks keep none of those that
    were in parts."""
    keep = is_main_process()

    def one(tensor: Tensor) -> Optional[Tensor]:
        full = whole(tensor)
        return full.detach().cpu() if keep else None

    return apply_to(state, lambda x: isinstance(x, Tensor), one)


def part(value: Any, like: Optional[Tensor]) -> Any:
    """Return this rank's part of a whole tensor that belongs to the parameter ``like``, or the value as it is if it is
    not cut."""
    if like is None or not hasattr(like, 'full_tensor') or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    like = cast(DTensor, like)
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
