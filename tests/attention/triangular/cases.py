"""Triangular layers with weights far from initialization, and their Jacobian."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import invertible_attention as ia

RESPONSES = ("gaussian", "embedded_gaussian", "dot_product", "concatenation")
SPATIAL = {1: (12,), 2: (3, 4), 3: (2, 3, 2)}
ORDERS = ("raster", "reverse", "columns", "reverse_columns", (5, 0, 7, 11, 2, 3, 1, 10, 9, 4, 8, 6))
FORMS = {"additive": False, "affine": True}
_OWN = ("order", "affine", "width", "depth", "feed_forward", "position", "max_log_scale")


def make(
    response: str = "embedded_gaussian", *, size: float = 0.2, **arguments: Any
) -> ia.InvertibleAttention:
    """Return a layer in float64 of four channels and two heads, every parameter moved by noise."""
    constraint = ia.Triangular(**{name: arguments.pop(name) for name in _OWN if name in arguments})
    layer = ia.InvertibleAttention(4, response, constraint=constraint, **({"heads": 2} | arguments)).double()
    disturb(layer, size)
    return layer


def disturb(module: nn.Module, size: float) -> None:
    """Move every parameter, so that no map is zero or nearly the identity."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(size * torch.randn_like(parameter))


def noise(batch: int, *spatial: int, channels: int = 4) -> Tensor:
    """Return random tokens."""
    return torch.randn(batch, channels, *spatial, dtype=torch.float64)


def jacobian(layer: nn.Module, x: Tensor, **given: Tensor) -> Tensor:
    """Return the Jacobian at one sample ``(1, C, *spatial)``, token by token: ``(N, N, C, C)``."""
    channels, tokens = x.shape[1], x.shape[2:].numel()
    flat = torch.autograd.functional.jacobian(lambda t: layer(t, **given), x)
    return flat.reshape(channels, tokens, channels, tokens).permute(1, 3, 0, 2)
