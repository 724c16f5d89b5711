"""Attention computed strip by strip of the response matrix: any form, O(N) memory, derivatives of any order."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from invertible_attention.attention.functional.form import Form
from invertible_attention.attention.functional.products import Adjoint, Apply, Weighting
from invertible_attention.attention.functional.strips import batch_in_one_go, map_strips

__all__ = ["attend"]


def attend(
    query: Float[Tensor, "batch heads queries dim"],
    key: Float[Tensor, "batch heads keys dim"],
    value: Float[Tensor, "batch heads keys features"],
    form: Form,
    log_prior: Float[Tensor, "*heads queries keys"] | None = None,
    mask: Bool[Tensor, "batch tokens"] | None = None,
) -> Float[Tensor, "batch heads queries features"]:
    """Multiply the values by the response matrix without ever holding more than a strip of it.

    A strip runs across the axis that is normalized, so it can be finished at once: its rows are queries, or keys for
    column normalization. Its gradients are recomputed, also strip by strip.

    Args:
        query: queries.
        key: keys.
        value: values.
        form: how scores are formed, turned into weights and normalized.
        log_prior: added to the logarithm of the weights.
        mask: true where a token is valid.

    Returns:
        One row per query.
    """
    batch = batch_in_one_go(query, key)
    if batch < query.shape[0]:
        pieces = [
            _attend(q, k, v, form, log_prior, m)
            for q, k, v, m in zip(
                query.split(batch),
                key.split(batch),
                value.split(batch),
                mask.split(batch) if mask is not None else [None] * len(query.split(batch)),
                strict=True,
            )
        ]
        return torch.cat(pieces)
    return _attend(query, key, value, form, log_prior, mask)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, form: Form, log_prior: Tensor | None, mask: Tensor | None
) -> Tensor:
    valid = None if mask is None else mask[:, None, :, None]
    if valid is not None:
        value = value.masked_fill(~valid, 0.0)
    if log_prior is not None:
        log_prior = log_prior[(None,) * (4 - log_prior.ndim)]
    normalized = form.normalization in ("column", "row") or (form.normalization == "all" and form.positive)
    weighting = Weighting(form.combine, form.phi, normalized, form.prior)
    if form.normalization == "column":
        prior = None if log_prior is None else log_prior.mT
        (product,) = map_strips(Adjoint(weighting), (key, prior, value), (query, valid))
    elif form.normalization == "row":
        (product,) = map_strips(Apply(weighting), (query, log_prior), (key, valid, value))
    elif form.normalization == "count":
        (product,) = map_strips(Apply(weighting), (query, log_prior), (key, valid, value))
        product = product / (key.shape[-2] if valid is None else valid.sum(-2, keepdim=True).clamp(min=1))
    elif form.positive:
        function = Apply(weighting, log_total=True)
        product, log_total = map_strips(function, (query, log_prior), (key, valid, value))
        if valid is not None:
            log_total = log_total.masked_fill(~valid, -torch.inf)
        share = _softmax_of_rows(log_total, guarded=valid is not None or log_prior is not None)
        product = product * share.to(product.dtype)
    else:
        ones = torch.ones_like(value[..., :1])
        with_sum = torch.cat((value, ones), -1)
        (product,) = map_strips(Apply(weighting), (query, log_prior), (key, valid, with_sum))
        if valid is not None:
            product = product.masked_fill(~valid, 0.0)
        product, total = product[..., :-1], product[..., -1:].sum(-2, keepdim=True)
        if valid is not None:
            total = total.masked_fill(~valid.any(-2, keepdim=True), 1.0)
        product = product / total
    return product if valid is None else product.masked_fill(~valid, 0.0)


def _softmax_of_rows(log_total: Tensor, *, guarded: bool) -> Tensor:
    if not guarded:
        return torch.softmax(log_total, -2)
    empty = (log_total == -torch.inf).all(-2, keepdim=True)
    return torch.softmax(log_total.masked_fill(empty, 0.0), -2).masked_fill(empty, 0.0)
