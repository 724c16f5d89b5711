"""Which precision sums over all tokens run in."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["accurate", "has_float64"]


def has_float64(device: torch.device) -> bool:
    """Tell whether a device computes in float64."""
    return device.type != "mps"


def accurate(tensor: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Convert to float64 where the device has it; for one number per token it costs nothing worth saving."""
    return tensor.double() if has_float64(tensor.device) else tensor
