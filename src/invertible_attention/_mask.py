"""Padding masks: which positions of a batch are valid, and how masks pass through a chain of bijections."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = [
    "channelwise",
    "count_valid",
    "flat_mask",
    "on_valid",
    "spread_over_channels",
    "valid_values",
]


def flat_mask(mask: Tensor, x: Tensor) -> Bool[Tensor, "batch tokens"]:
    """Return a mask of the positions of ``x`` as one axis.

    Raises:
        ValueError: If it is not boolean, or neither ``(B, *spatial)`` nor ``(B, N)``.
    """
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be boolean, true where a token is valid, got {mask.dtype}")
    spatial = x.shape[2:]
    if mask.shape not in ((x.shape[0], *spatial), (x.shape[0], spatial.numel())):
        expected = (x.shape[0], *spatial)
        raise ValueError(f"expected a mask of shape {tuple(expected)}, got {tuple(mask.shape)}")
    return mask.flatten(1)


def valid_values(mask: Tensor, x: Tensor) -> Bool[Tensor, "batch ..."]:
    """Return a mask that broadcasts with ``x``: ``(B, 1, *spatial)`` for images, ``(B, D)`` for vectors.

    Raises:
        ValueError: If it does not fit.
    """
    if x.ndim > 2:
        return flat_mask(mask, x).view(x.shape[0], 1, *x.shape[2:])
    if mask.dtype != torch.bool or mask.shape != x.shape:
        raise ValueError(
            f"expected a boolean mask of shape {tuple(x.shape)}, got {mask.dtype} of shape {tuple(mask.shape)}"
        )
    return mask


def count_valid(mask: Tensor, x: Tensor) -> Float[Tensor, " batch"]:
    """Return the number of valid values of each sample, in ``float32`` or better."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return valid_values(mask, x).expand_as(x).flatten(1).sum(1).to(dtype)


def on_valid(
    function: Callable[[Tensor], Tensor], x: Tensor, mask: Tensor | None, *, fill: float = 0.0
) -> Tensor:
    """Apply an elementwise function where ``x`` is valid and return the rest as it is, whatever it contains.

    Args:
        function: Not applied to padding, whose gradient through it might be NaN.
        x: Its argument.
        mask: True where ``x`` is valid; ``None`` if it is everywhere.
        fill: A harmless argument.
    """
    if mask is None:
        return function(x)
    valid = valid_values(mask, x)
    return torch.where(valid, function(x.masked_fill(~valid, fill)), x)


def spread_over_channels(mask: Tensor, shape: tuple[int, ...]) -> Bool[Tensor, "batch dim"]:
    """Return the mask of the values of a flattened event ``(C, *spatial)`` from that of its positions.

    Raises:
        ValueError: If it does not fit.
    """
    channels, *spatial = shape
    size = math.prod(spatial)
    if not spatial and mask.shape[1:] == (channels,):
        return mask
    if mask.shape[1:].numel() != size:
        raise ValueError(
            f"expected a mask of shape (B, {', '.join(map(str, spatial))}), got {tuple(mask.shape)}"
        )
    return mask.reshape(mask.shape[0], 1, size).expand(-1, channels, -1).flatten(1)


def channelwise(mask: Tensor) -> Bool[Tensor, "batch *spatial"]:
    """Return the mask of positions from one of values ``(B, C, *spatial)``, which must agree over channels.

    Raises:
        ValueError: If a position is valid in some channels only.
    """
    valid = mask.any(1)
    if not torch.compiler.is_compiling() and not torch.equal(valid, mask.all(1)):
        raise ValueError("a position must be valid in all channels or in none: the mask cuts through some")
    return valid
