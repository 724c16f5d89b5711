"""Constrained weights computed together: layers of one kind in one batch, each once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from invertible_attention.lipschitz.convolution import (
    convolution_norm_upper_bound,
    convolution_norm_upper_bounds,
)
from invertible_attention.lipschitz.parametrize import SpectralNormBound, limit_norm

__all__ = ["constrained_together", "constrained_weight"]

# By layer: what its weight was computed from, and the weight.
_weights: ContextVar[dict[int, tuple[Tensor, Tensor]] | None] = ContextVar(
    "constrained weights", default=None
)


class _Member(NamedTuple):
    layer: nn.Module
    bound: SpectralNormBound
    original: Tensor


@contextmanager
def constrained_together(module: nn.Module) -> Iterator[None]:
    """Let :func:`constrained_weight` return, within the block, weights that were computed together at its start.

    A bound of a small matrix takes longer to dispatch than to compute. A network has many layers of the same shape
    under the same constraint: their bounds are one computation over a batch. Within another such block, and under
    compilation, nothing is done.

    Args:
        module: What contains layers constrained by :func:`~invertible_attention.lipschitz.constrain`; others are left
            alone.
    """
    if _weights.get() is not None or torch.compiler.is_compiling():
        yield
        return
    computed = (pair for group in _groups(module) for pair in _constrain_group(group))
    token = _weights.set({id(member.layer): (member.original, weight) for member, weight in computed})
    try:
        yield
    finally:
        _weights.reset(token)


def constrained_weight(layer: nn.Module) -> Tensor:
    """Return ``layer.weight``, the one computed together with others where there is one."""
    original, weight = (_weights.get() or {}).get(id(layer), (None, None))
    # Within a functional call the layer has other parameters than it had.
    if weight is None or original is not cast(Any, layer).parametrizations.weight.original:
        return cast(Tensor, layer.weight)
    return weight


def _groups(module: nn.Module) -> list[list[_Member]]:
    """Return the layers that differ in their weights only, two or more at a time."""
    found: dict[Any, list[_Member]] = {}
    for name, layer in module.named_modules():
        member = _member(layer)
        if member is not None:
            # Layers of one branch stay apart, so that each block's gradients end at weights of its own.
            place = name.rpartition(".")[2]
            found.setdefault((place, *_kind(member)), []).append(member)
    return [members for members in found.values() if len(members) > 1]


def _member(layer: nn.Module) -> _Member | None:
    if not parametrize.is_parametrized(layer, "weight"):
        return None
    (*others, bound) = cast(Any, layer).parametrizations.weight
    if others or type(bound) is not SpectralNormBound or not isinstance(bound.norm, partial):
        return None
    return _Member(layer, bound, cast(Any, layer).parametrizations.weight.original)


def _kind(member: _Member) -> tuple[Any, ...]:
    _, bound, original = member
    norm = cast(Any, bound.norm)
    settings = tuple(sorted(norm.keywords.items()))
    return norm.func, norm.args, settings, bound.coefficient, original.shape, original.dtype, original.device


def _constrain_group(group: list[_Member]) -> Iterator[tuple[_Member, Tensor]]:
    bound = group[0].bound
    norm = cast(Any, bound.norm)
    function = norm.func
    if function is convolution_norm_upper_bound:
        function = convolution_norm_upper_bounds
    stacked = torch.stack([member.original for member in group])
    norms = function(stacked, *norm.args, **norm.keywords)
    yield from zip(group, limit_norm(stacked, norms, bound.coefficient), strict=True)
