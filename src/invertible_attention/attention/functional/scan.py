"""Running sums with exponential decay: prefix sums of numbers too far apart in size for one common exponent."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["decayed_sum"]

# Steps done one after another before the rest is done for all chunks at once.
_CHUNK = 16


def decayed_sum(
    x: Float[Tensor, "*batch n features"], position: Float[Tensor, "*batch n"], *, reverse: bool = False
) -> Float[Tensor, "*batch n features"]:
    r"""Running sum in which every term fades with its distance.

    .. math:: y_m = \sum_{j \le m} e^{-|c_m - c_j|} x_j \qquad (j \ge m \text{ if reversed})

    No exponent is ever positive, so nothing overflows, and no term is lost to a larger one it is not added to.

    Args:
        x: the terms.
        position: :math:`c`, monotone along its last axis; a constant, not differentiated.
        reverse: run from the end.

    Returns:
        The sums, linear in ``x``; differentiable to any order.

    Example:
        >>> decayed_sum(torch.ones(3, 1), torch.tensor([0.0, 0.0, 1000.0])).flatten()
        tensor([1., 2., 1.])
    """
    return _DecayedSum.apply(x, position.detach(), reverse)  # type: ignore[return-value]


class _DecayedSum(torch.autograd.Function):
    """The adjoint of a running sum is the same sum run from the other end."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, position: Tensor, reverse: bool) -> Tensor:
        return _scan(x, position, reverse)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, bool], output: Tensor) -> None:
        _, position, ctx.reverse = inputs
        ctx.save_for_backward(position)
        ctx.save_for_forward(position)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (position,) = ctx.saved_tensors
        return decayed_sum(cotangent, position, reverse=not ctx.reverse), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:  # type: ignore[override]
        (position,) = ctx.saved_tensors
        return decayed_sum(tangent, position, reverse=ctx.reverse)


def _scan(x: Tensor, position: Tensor, reverse: bool) -> Tensor:
    length, features = x.shape[-2:]
    if length <= _CHUNK:
        return _scan_steps(x, position, reverse)
    chunks = -(-length // _CHUNK)
    padding = chunks * _CHUNK - length
    x = torch.cat((x, x.new_zeros(*x.shape[:-2], padding, features)), -2)
    position = torch.cat((position, position[..., -1:].expand(*position.shape[:-1], padding)), -1)
    x = x.reshape(*x.shape[:-2], chunks, _CHUNK, features)
    position = position.reshape(*position.shape[:-1], chunks, _CHUNK)
    within = _scan_steps(x, position, reverse)
    # The running sum over whole chunks is carried into the next chunk, fading on the way.
    last, here, there = (
        (0, slice(None, -1), slice(1, None)) if reverse else (-1, slice(1, None), slice(None, -1))
    )
    ends = position[..., last]
    carry = _scan(within[..., last, :], ends, reverse)[..., there, None, :]
    fade = torch.exp(-(position[..., here, :] - ends[..., there, None]).abs())[..., None]
    carried = torch.addcmul(within[..., here, :, :], fade, carry)
    unchanged = within[..., -1:, :, :] if reverse else within[..., :1, :, :]
    parts = (carried, unchanged) if reverse else (unchanged, carried)
    whole = torch.cat(parts, -3)
    return whole.reshape(*whole.shape[:-3], chunks * _CHUNK, features)[..., :length, :]


def _scan_steps(x: Tensor, position: Tensor, reverse: bool) -> Tensor:
    fade = torch.exp(-(position[..., 1:] - position[..., :-1]).abs())[..., None]
    terms, fades = x.unbind(-2), fade.unbind(-2)
    if reverse:
        terms, fades = terms[::-1], fades[::-1]
    sums = [terms[0]]
    for term, between in zip(terms[1:], fades, strict=True):
        sums.append(torch.addcmul(term, between, sums[-1]))
    return torch.stack(sums[::-1] if reverse else sums, -2)
