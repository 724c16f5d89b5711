"""Which precision is computed in: half precision is for storage only."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["accurate", "raised", "require_real", "wide_dtype", "working_dtype"]


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype to compute in: ``float32`` for half precision."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def require_real(tensor: Tensor) -> None:
    """Raise :class:`ValueError` for complex numbers: their imaginary parts would be dropped."""
    if tensor.is_complex():
        raise ValueError(f"expected real numbers, got {tensor.dtype}")


def raised(tensor: Tensor) -> Tensor:
    """Return the tensor, in ``float32`` if it is in half precision."""
    return tensor.to(working_dtype(tensor.dtype))


def wide_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype of sums, norms and small systems: ``float64`` where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def accurate(tensor: Tensor) -> Tensor:
    """Convert to :func:`wide_dtype`: for one number per token that costs nothing worth saving."""
    return tensor.to(wide_dtype(tensor.device))
