r"""Separable responses: attention in O(N) without any N×N matrix.

- ``identity``: :math:`\sum_j (q_i \cdot k_j) v_j = q_i \cdot \sum_j k_j v_j^\top`; a sum of scores is the inner
  product of :math:`(q_i, 1)` and :math:`(1, k_j)`.
- ``exp`` of a sum: :math:`e^{a_i + b_j} = e^{a_i} e^{b_j}`, one softmax over the queries and one over the keys.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from invertible_attention._precision import accurate
from invertible_attention.attention.functional.form import Form

__all__ = ["attend"]


def attend(
    query: Float[Tensor, "batch heads queries dim"],
    key: Float[Tensor, "batch heads keys dim"],
    value: Float[Tensor, "batch heads keys features"],
    form: Form,
) -> Float[Tensor, "batch heads queries features"]:
    """Multiply the values by the response matrix of a separable form.

    Args:
        query: queries.
        key: keys.
        value: values.
        form: φ is ``"identity"``, or ``"exp"`` with ``combine="sum"``.

    Returns:
        One row per query.
    """
    return _separate(accurate(query), accurate(key), accurate(value), form).to(value.dtype)


def _separate(query: Tensor, key: Tensor, value: Tensor, form: Form) -> Tensor:
    if form.phi == "exp":
        return _exponential(query, key, value, form.normalization)
    if form.combine == "sum":
        ones_query, ones_key = torch.ones_like(query), torch.ones_like(key)
        query, key = torch.cat((query, ones_query), -1), torch.cat((ones_key, key), -1)
    return _bilinear(query, key, value, form.normalization)


def _bilinear(query: Tensor, key: Tensor, value: Tensor, normalization: str) -> Tensor:
    if normalization == "count":
        return query @ (key.mT @ (value / key.shape[-2]))
    if normalization == "column":
        return query @ (key.mT @ (value / (key @ query.sum(-2, keepdim=True).mT)))
    total = query @ key.sum(-2, keepdim=True).mT
    if normalization == "all":
        total = total.sum(-2, keepdim=True)
    return query @ (key.mT @ value) / total


def _exponential(query: Tensor, key: Tensor, value: Tensor, normalization: str) -> Tensor:
    # Normalized weights do not depend on the scores of the summed tokens. Zero times those keeps their zero
    # gradient in the graph, and lets a NaN among them through, as in the whole matrix.
    if normalization == "column":
        return torch.softmax(query, -2) * (value + 0.0 * key).sum(-2, keepdim=True)
    if normalization == "count":
        largest = key.detach().amax(-2, keepdim=True)
        mean = (torch.exp(key - largest) * value).mean(-2, keepdim=True)
        return torch.exp(query + largest) * mean
    mean = (torch.softmax(key, -2) * value).sum(-2, keepdim=True)
    return mean + 0.0 * query if normalization == "row" else torch.softmax(query, -2) * mean
