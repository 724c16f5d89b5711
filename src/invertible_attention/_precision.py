"""Half precisions store; what is computed is computed in single precision or better."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["raised"]


def raised(tensor: Tensor) -> Tensor:
    """Return the tensor, in ``float32`` if it is in half precision."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
