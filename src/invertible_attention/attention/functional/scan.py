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
        if reverse:
            return _scan(x.flip(-2), position.flip(-1)).flip(-2)
        return _scan(x, position)

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


def _scan(x: Tensor, position: Tensor) -> Tensor:
    length, features = x.shape[-2:]
    if length <= _CHUNK:
        return _scan_steps(x, position)
    chunks = -(-length // _CHUNK)
    padding = chunks * _CHUNK - length
    x = torch.cat((x, x.new_zeros(*x.shape[:-2], padding, features)), -2)
    position = torch.cat((position, position[..., -1:].expand(*position.shape[:-1], padding)), -1)
    position = position.unflatten(-1, (chunks, _CHUNK))
    within = _scan_steps(x.unflatten(-2, (chunks, _CHUNK)), position)
    ends = position[..., -1]
    before = _scan(within[..., -1, :], ends)[..., :-1, None, :]
    fade = torch.exp(-(position[..., 1:, :] - ends[..., :-1, None]).abs())[..., None]
    carried = torch.addcmul(within[..., 1:, :, :], fade, before)
    return torch.cat((within[..., :1, :, :], carried), -3).flatten(-3, -2)[..., :length, :]


def _scan_steps(x: Tensor, position: Tensor) -> Tensor:
    fade = torch.exp(-(position[..., 1:] - position[..., :-1]).abs())[..., None]
    sums = [x[..., 0, :]]
    for step in range(1, x.shape[-2]):
        sums.append(torch.addcmul(x[..., step, :], fade[..., step - 1, :], sums[-1]))
    return torch.stack(sums, -2)
