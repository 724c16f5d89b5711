r"""Attention by sums of scores, :math:`\varphi(a_i + b_j)`, in O(N log N): sort, then running sums.

:math:`\mathrm{elu}(a + b) + 1` is :math:`e^a e^b` below zero and :math:`1 + a + b` above. With the keys sorted, the
two cases of a query are a suffix and a prefix of them, so its sum over all keys is a lookup in running sums:

.. math:: \sum_j \varphi(a_i + b_j) X_j = e^{a_i} \sum_{b_j \le -a_i} e^{b_j} X_j
          + (1 + a_i) \sum_{b_j > -a_i} X_j + \sum_{b_j > -a_i} b_j X_j

Sums run in float64. Weights that are all small are scaled up by the largest one, inside the exponent.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from invertible_attention._differentiation import functional_transforms_active, is_differentiated
from invertible_attention.attention.functional.expansion import Expansion, expansion
from invertible_attention.attention.functional.form import Form
from invertible_attention.attention.functional.scan import decayed_sum

__all__ = ["attend"]


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
