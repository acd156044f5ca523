"""Leaving cheap intermediate results out of what autograd keeps."""

from typing import Any, Callable

import torch
from torch import Tensor


def recomputed(compute: Callable[[], Tensor], then: Callable[[Tensor], Tensor]) -> Tensor:
    """Return ``then(compute())``; what ``compute`` returns is not kept for the backward pass but computed again there,
    equal bit for bit.

    Worth it where ``compute`` is cheap and what it reads is kept in any case, as a norm's input is.

    Args:
        compute: Runs again in the backward pass, without gradients, as often as an operator of ``then`` had kept its
            result. It restores the autocast state that it needs.
        then: Operators that read the result.
    """
    y = compute()
    shape, storage = y.shape, y.untyped_storage()._cdata

    @torch.no_grad()
    def again() -> Tensor:
        return compute()

    def pack(kept: Tensor) -> Any:
        is_result = kept.shape == shape and kept.untyped_storage()._cdata == storage
        return again if is_result else kept  # weights and all else pass through

    def unpack(kept: Any) -> Tensor:
        return again() if kept is again else kept

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        return then(y)
