"""Attention with the whole N×N response matrix: the definition every faster path is tested against."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from invertible_attention.attention.functional.form import Form, PositivePhi, scores, split_prior

__all__ = ["attend", "response_matrix"]


def attend(
    query: Float[Tensor, "batch heads queries dim"],
    key: Float[Tensor, "batch heads keys dim"],
    value: Float[Tensor, "batch heads keys features"],
    form: Form,
    log_prior: Float[Tensor, "*heads queries keys"] | None = None,
    mask: Bool[Tensor, "batch tokens"] | None = None,
) -> Float[Tensor, "batch heads queries features"]:
    """Multiply the values by the response matrix; see :func:`response_matrix` for the arguments."""
    return response_matrix(query, key, form, log_prior, mask) @ value


def response_matrix(
    query: Float[Tensor, "batch heads queries dim"],
    key: Float[Tensor, "batch heads keys dim"],
    form: Form,
    log_prior: Float[Tensor, "*heads queries keys"] | None = None,
    mask: Bool[Tensor, "batch tokens"] | None = None,
) -> Float[Tensor, "batch heads queries keys"]:
    r"""Form :math:`R_{ij} = \pi_{ij} \varphi(t_{ij}) / Z`; positive weights are shifted inside the exponent.

    Args:
        query: queries.
        key: keys.
        form: how scores are formed, turned into weights and normalized.
        log_prior: :math:`\log \pi`, may be minus infinity.
        mask: true where a token is valid. Rows and columns of the others are zero.

    Returns:
        The response matrix. A row, column or matrix whose weights are all zero stays zero.
    """
    (query, prior_query), (key, prior_key) = split_prior(query, form.prior), split_prior(key, form.prior)
    score = scores(form.combine, query, key)
    by_factors = prior_query @ prior_key.mT if form.prior else None
    pair = None if mask is None else mask[:, None, :, None] & mask[:, None, None, :]
    if form.normalization != "count" and isinstance(form.function, PositivePhi):
        logarithm = _log_weight(form.function, score, (log_prior, by_factors), pair)
        return _normalize_logarithm(form, logarithm, log_prior, mask)
    if (form.prior or log_prior is not None) and isinstance(form.function, PositivePhi):
        weight = torch.exp(_log_weight(form.function, score, (log_prior, by_factors), None))
    else:
        weight = form.function.weight(score)
    if pair is not None:
        weight = weight.masked_fill(~pair, 0.0)
    return _normalize_weight(form, weight, mask)


def _log_weight(
    phi: PositivePhi, score: Tensor, priors: tuple[Tensor | None, ...], pair: Tensor | None
) -> Tensor:
    logarithm = phi.log(score)
    for log_prior in priors:
        logarithm = logarithm if log_prior is None else logarithm + log_prior
    return logarithm if pair is None else logarithm.masked_fill(~pair, -torch.inf)


def _normalize_logarithm(
    form: Form, logarithm: Tensor, log_prior: Tensor | None, mask: Tensor | None
) -> Tensor:
    if form.normalization == "all":
        flat = logarithm.flatten(-2)[..., None, :]
        return _softmax(flat, -1, log_prior, mask).view(logarithm.shape)
    return _softmax(logarithm, -2 if form.normalization == "column" else -1, log_prior, mask)


def _softmax(logarithm: Tensor, dim: int, log_prior: Tensor | None, mask: Tensor | None) -> Tensor:
    if dim == -2 and torch.compiler.is_compiling():
        # Inductor takes a softmax between two products for one over the last axis, whatever its axis is
        # (pytorch#196468), and would compute row attention. It does not recognize the transposed form.
        return _softmax(logarithm.mT, -1, log_prior, mask).mT
    if log_prior is None and mask is None:
        return torch.softmax(logarithm, dim)
    # A column with no weight at all: softmax would return NaN, and so would its gradient.
    empty = (logarithm == -torch.inf).all(dim, keepdim=True)
    return torch.softmax(logarithm.masked_fill(empty, 0.0), dim).masked_fill(empty, 0.0)


def _normalize_weight(form: Form, weight: Tensor, mask: Tensor | None) -> Tensor:
    if form.normalization == "count":
        if mask is None:
            return weight / weight.shape[-1]
        return weight / mask.sum(-1).clamp(min=1)[:, None, None, None]
    dim = {"column": (-2,), "row": (-1,), "all": (-2, -1)}[form.normalization]
    total = weight.sum(dim, keepdim=True)
    if mask is not None:
        total = total.masked_fill(~_any_valid(form.normalization, mask), 1.0)
    return weight / total


def _any_valid(normalization: str, mask: Tensor) -> Tensor:
    if normalization == "all":
        return mask.any(-1)[:, None, None, None]
    return mask[:, None, None, :] if normalization == "column" else mask[:, None, :, None]
