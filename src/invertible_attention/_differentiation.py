"""Whether derivatives are needed: what can be skipped where they are not."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

__all__ = ["functional_transforms_active", "is_differentiated"]


def functional_transforms_active() -> bool:
    """Whether a ``torch.func`` transform such as ``grad`` or ``vmap`` is active."""
    return torch._C._are_functorch_transforms_active()


def is_differentiated(tensors: Iterable[Tensor | None]) -> bool:
    """Return whether any of the tensors is being differentiated, in reverse or in forward mode."""
    return any(
        (torch.is_grad_enabled() and tensor.requires_grad) or _has_tangent(tensor)
        for tensor in tensors
        if tensor is not None
    )


def _has_tangent(tensor: Tensor) -> bool:
    return torch.autograd.forward_ad.unpack_dual(tensor).tangent is not None
