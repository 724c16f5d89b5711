r"""Attention by sums of scores, :math:`\varphi(a_i + b_j)`, in O(N log N): sort, then running sums.

:math:`\mathrm{elu}(a + b) + 1` is :math:`e^a e^b` below zero and :math:`1 + a + b` above. With the keys sorted, the
two cases of a query are a suffix and a prefix of them, so its sum over all keys is a lookup in running sums:

.. math:: \sum_j \varphi(a_i + b_j) X_j = e^{a_i} \sum_{b_j \le -a_i} e^{b_j} X_j
          + (1 + a_i) \sum_{b_j > -a_i} X_j + \sum_{b_j > -a_i} b_j X_j

Sums run in float64. Weights that are all small are scaled up by the largest one, inside the exponent. In general

.. math:: \varphi(t) = o + \begin{cases} \sum_k c_k e^{kt} & t \le 0 \\
          \alpha + t + \sum_k d_k e^{-kt} & t > 0 \end{cases}

where every term separates in :math:`t = a + b`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from invertible_attention._differentiation import functional_transforms_active, is_differentiated
from invertible_attention.attention.functional.form import Form

__all__ = ["EXPANSIONS", "Expansion", "attend", "decayed_sum", "expansion"]

# Steps done one after another before the rest is done for all chunks at once.
_CHUNK = 16


@dataclass(frozen=True)
class Expansion:
    r"""The terms of one φ.

    Args:
        below: :math:`c_1, c_2, \dots`, for scores up to zero.
        above: :math:`d_1, d_2, \dots`, for positive scores.
        intercept: :math:`\alpha`.
        offset: :math:`o`, for every score.
    """

    below: tuple[float, ...]
    above: tuple[float, ...] = ()
    intercept: float = 0.0
    offset: float = 0.0


# softplus(t) = max(t, 0) + log(1 + e^{-|t|}) has no finite expansion. log(1 + x) / x is analytic on [0, 1] with its
# singularity at -1, so its Chebyshev interpolant of degree n errs by (3 + 2 √2)^{-n} at most up to a factor of about
# one. The coefficients below were computed with 60 digits; the tests measure the errors.
_LOG1P_22 = (
    1.0,
    -0.49999999999999833,
    0.3333333333330646,
    -0.2499999999826481,
    0.19999999940349814,
    -0.16666665403691092,
    0.14285696309567308,
    -0.12499817769513955,
    0.11109740896460193,
    -0.09992127821760016,
    0.09055567515590733,
    -0.08207163680437429,
    0.07329015255534954,
    -0.06288754670783146,
    0.05007742395391704,
    -0.03553052540144125,
    0.021511022653356974,
    -0.01061469636358553,
    0.004047809893467512,
    -0.0011093809681700342,
    0.00019330794553431145,
    -1.6020216725538194e-05,
)
_LOG1P_14 = (
    0.9999999999965526,
    -0.4999999986454919,
    0.33333324425176525,
    -0.24999766952241512,
    0.19996782322178103,
    -0.16639681062517256,
    0.14136394226230475,
    -0.11924821056785652,
    0.09509049761833763,
    -0.06673351301809682,
    0.03782205115422201,
    -0.01566061972113594,
    0.0041139143025147725,
    -0.0005074701491635587,
)

EXPANSIONS: Mapping[str, Expansion] = MappingProxyType(
    {
        "elu_plus_one": Expansion(below=(1.0,), intercept=1.0),
        "elu": Expansion(below=(1.0,), intercept=1.0, offset=-1.0),
        "softplus": Expansion(below=_LOG1P_22, above=_LOG1P_22),
    }
)
"""Exact for ``elu_plus_one`` and ``elu``; for ``softplus`` the relative error is below 1e-17, that of the first
derivative 1e-15 and of the second 1e-12."""

_SINGLE_SOFTPLUS = Expansion(below=_LOG1P_14, above=_LOG1P_14)


def expansion(phi: str, dtype: torch.dtype) -> Expansion:
    """Return the terms that are exact to a dtype: for ``softplus``, float32 needs 14 of them and float64 needs 22."""
    if phi == "softplus" and dtype != torch.float64:
        return _SINGLE_SOFTPLUS
    return EXPANSIONS[phi]


def attend(
    query: Float[Tensor, "batch heads queries 1"],
    key: Float[Tensor, "batch heads keys 1"],
    value: Float[Tensor, "batch heads keys features"],
    form: Form,
) -> Float[Tensor, "batch heads queries features"]:
    """Multiply the values by the response matrix of a form with ``combine="sum"`` and an expansion of its φ.

    Args:
        query: the queries' scores.
        key: the keys' scores.
        value: values.
        form: how scores are turned into weights and normalized.

    Returns:
        One row per query, in the dtype of ``value``.
    """
    terms = expansion(form.phi, value.dtype)
    a, b, x = query[..., 0].double(), key[..., 0].double(), value.double()
    zero = torch.zeros((), dtype=torch.float64, device=value.device)
    if form.normalization == "count":
        return (_pair_sums(terms, a, b, x, zero, zero) / b.shape[-1]).to(value.dtype)
    if form.normalization == "column":
        scale = _largest(a, b) if form.positive else zero
        total = _pair_sums(terms, b, a, torch.ones_like(a)[..., None], scale, zero)
        return _pair_sums(terms, a, b, x / total, zero, scale).to(value.dtype)
    scale = zero
    if form.positive:
        scale = _largest(b, a)
        if form.normalization == "all":
            scale = scale.amax(-1, keepdim=True)
    sums = _pair_sums(terms, a, b, torch.cat((x, torch.ones_like(x[..., :1])), -1), scale, zero)
    sums, total = sums[..., :-1], sums[..., -1:]
    if form.normalization == "all":
        total = total.sum(-2, keepdim=True)
    return (sums / total).to(value.dtype)


def _largest(over: Tensor, each: Tensor) -> Tensor:
    """Exponent of each token's largest weight where all its scores are negative, else zero; a constant."""
    return torch.clamp(each.detach() + over.detach().amax(-1, keepdim=True), max=0.0)


def _pair_sums(
    terms: Expansion,
    query: Float[Tensor, "batch heads queries"],
    key: Float[Tensor, "batch heads keys"],
    x: Float[Tensor, "batch heads keys features"],
    query_scale: Float[Tensor, "*batch_heads_queries"],
    key_scale: Float[Tensor, "*batch_heads_keys"],
) -> Float[Tensor, "batch heads queries features"]:
    r"""Compute :math:`\sum_j \varphi(a_i + b_j) e^{-r_i - s_j} X_j` for every i.

    The scales must be zero for tokens with a positive score and never below the token's largest score.
    """
    negated, order = torch.sort(-key, -1)
    x = _take(x, order)
    ordered = -negated
    # Keys before this position have a positive score with the query.
    split: Tensor = _CountBelow.apply(negated.detach(), query.detach())  # type: ignore[assignment]
    scale = key_scale.expand(key.shape).gather(-1, order)
    result = _line(terms.intercept + query, ordered, x, split)
    for rate, coefficient in enumerate(terms.below, 1):
        exponent = rate * ordered - scale
        sums = _running_exponentials(exponent, x, reverse=True)
        factor = rate * query - query_scale
        result = result + coefficient * _look_up(sums, exponent, factor, split, split < key.shape[-1])
    for rate, coefficient in enumerate(terms.above, 1):
        exponent = -rate * ordered
        sums = _running_exponentials(exponent, x, reverse=False)
        result = result + coefficient * _look_up(sums, exponent, -rate * query, split - 1, split > 0)
    if terms.offset:
        result = result + terms.offset * x.sum(-2, keepdim=True)
    return result


class _CountBelow(torch.autograd.Function):
    """How many of some sorted numbers lie below each query; a constant, with a rule for ``vmap``."""

    @staticmethod
    def forward(ordered: Tensor, query: Tensor) -> Tensor:
        return torch.searchsorted(ordered.contiguous(), query.contiguous())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[None, None]:
        return None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor) -> tuple[Any, int]:
        ordered, query = (
            tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
            for tensor, dim in zip(inputs, in_dims, strict=True)
        )
        return _CountBelow.apply(ordered, query), 0


def _line(intercept: Tensor, ordered: Tensor, x: Tensor, split: Tensor) -> Tensor:
    r"""Compute :math:`\sum_{j < p} (\alpha + b_j) X_j` for keys in descending order.

    With the last of them taken out, :math:`\sum_{j < p} (b_j - b_{p-1}) X_j` is a running sum of gaps times running
    sums. So two large scores of opposite sign never meet, as they would in :math:`\alpha \sum X_j + \sum b_j X_j`.
    """
    constant = ordered.detach()
    gaps = (constant[..., :-1] - constant[..., 1:])[..., None]
    last = torch.cat((torch.zeros_like(constant[..., :1]), constant), -1).gather(-1, split)
    slope = (intercept + last)[..., None]
    if not (functional_transforms_active() or is_differentiated((ordered, x))):
        running = _running_sum(x)
        spread = _running_sum(gaps * running[..., 1:-1, :])
        # Keys before the first and before the second have no spread.
        rest = _take(spread, (split - 1).clamp_min(0))
        return torch.addcmul(rest, slope, _take(running, split))
    # The second half is zero and carries the gradient of the scores.
    running, carrier = torch.cat((x, (ordered - constant)[..., None] * x), -1).cumsum(-2).chunk(2, -1)
    spread = _pad_front((gaps * running[..., :-1, :]).cumsum(-2))
    total, rest = _take(_pad_front(torch.cat((running, carrier + spread), -1)), split).chunk(2, -1)
    return slope * total + rest


def _running_sum(x: Tensor) -> Tensor:
    """Return the sums of the first 0, 1, 2 … entries along axis -2."""
    sums = x.new_zeros(*x.shape[:-2], x.shape[-2] + 1, x.shape[-1])
    torch.cumsum(x, -2, out=sums[..., 1:, :])
    return sums


def _running_exponentials(exponent: Tensor, x: Tensor, *, reverse: bool) -> Tensor:
    """Sum ``e^(exponent - own exponent) x`` up to each position; the factor of one carries the gradient."""
    constant = exponent.detach()
    return decayed_sum(torch.exp(exponent - constant)[..., None] * x, constant, reverse=reverse)


def _look_up(sums: Tensor, exponent: Tensor, factor: Tensor, position: Tensor, present: Tensor) -> Tensor:
    """Read running sums at a position and give them back their exponent; zero where there is nothing to sum."""
    position = position.clamp(0, sums.shape[-2] - 1)
    power = factor + exponent.detach().gather(-1, position)
    weight = torch.exp(torch.where(present, power, -torch.inf))
    return weight[..., None] * _take(sums, position)


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Return the rows at an index; whole rows are copied, which ``gather`` would do number by number."""
    sets, rows = x.shape[:-2].numel(), x.shape[-2]
    index = index + rows * torch.arange(sets, device=x.device).reshape(*x.shape[:-2], 1)
    return x.reshape(sets * rows, -1).index_select(0, index.flatten()).reshape(*index.shape, x.shape[-1])


def _pad_front(x: Tensor) -> Tensor:
    return torch.cat((x.new_zeros(*x.shape[:-2], 1, x.shape[-1]), x), -2)


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
