"""One call to attention: its arguments checked, and the facts a choice of implementation depends on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from invertible_attention.attention.functional.form import Form

__all__ = ["Problem", "check"]


@dataclass(frozen=True)
class Problem:
    """What is to be computed, without the data.

    Args:
        form: how scores are formed, turned into weights and normalized.
        batch: samples times heads.
        queries: number of queries.
        keys: number of keys.
        dim: features of a query.
        features: features of a value.
        device: where the data is.
        has_prior: whether there is a prior beside the scores.
        has_mask: whether there is a padding mask.
    """

    form: Form
    batch: int
    queries: int
    keys: int
    dim: int
    features: int
    device: torch.device
    has_prior: bool = False
    has_mask: bool = False

    @property
    def scores(self) -> int:
        """Number of entries of all score matrices."""
        return self.batch * self.queries * self.keys


def check(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    form: Form,
    log_prior: Tensor | None,
    mask: Tensor | None,
    prior: tuple[Tensor, Tensor] | None = None,
) -> Problem:
    """Check the arguments of a call against each other.

    Args:
        query: ``(batch, heads, queries, dim)``.
        key: ``(batch, heads, keys, dim)``.
        value: ``(batch, heads, keys, features)``.
        form: what is to be computed.
        log_prior: ``(queries, keys)`` or ``(heads, queries, keys)``.
        mask: ``(batch, tokens)``.
        prior: ``(queries, rank)`` and ``(keys, rank)``, or with heads in front.

    Returns:
        The problem, the prior not yet in it.

    Raises:
        ValueError: naming the argument and its shape or dtype.
    """
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if tensor.ndim != 4:
            raise ValueError(
                f"{name} must be (batch, heads, tokens, features), got shape {tuple(tensor.shape)}"
            )
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must be real and floating-point, got {tensor.dtype}")
    if not query.shape[:2] == key.shape[:2] == value.shape[:2]:
        raise ValueError(
            "query, key and value must agree in batch and heads, got "
            f"{tuple(query.shape)}, {tuple(key.shape)}, {tuple(value.shape)}"
        )
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(f"query and key must agree in features, got {query.shape[-1]} and {key.shape[-1]}")
    if key.shape[-2] != value.shape[-2]:
        raise ValueError(f"there must be one value per key, got {value.shape[-2]} and {key.shape[-2]}")
    if 0 in (query.shape[-2], key.shape[-2]):
        raise ValueError(
            f"there must be at least one token, got {query.shape[-2]} queries, {key.shape[-2]} keys"
        )
    if form.combine == "sum" and query.shape[-1] != 1:
        raise ValueError(f'combine="sum" adds one number per token, got {query.shape[-1]} features')
    if log_prior is not None:
        _check_prior(query, key, form, log_prior)
    if prior is not None:
        _check_factors(query, key, form, prior)
    if mask is not None:
        _check_mask(query, key, mask)
    batch, heads, queries, dim = query.shape
    return Problem(
        form=form,
        batch=batch * heads,
        queries=queries,
        keys=key.shape[-2],
        dim=dim,
        features=value.shape[-1],
        device=query.device,
        has_prior=log_prior is not None,
        has_mask=mask is not None,
    )


def _check_prior(query: Tensor, key: Tensor, form: Form, log_prior: Tensor) -> None:
    if not form.positive:
        raise ValueError(f"a prior multiplies positive weights; phi={form.phi!r} may be negative")
    expected = (query.shape[1], query.shape[-2], key.shape[-2])
    if tuple(log_prior.shape) not in (expected, expected[1:]):
        raise ValueError(f"log_prior must be {expected} or {expected[1:]}, got {tuple(log_prior.shape)}")


def _check_factors(query: Tensor, key: Tensor, form: Form, prior: tuple[Tensor, Tensor]) -> None:
    if not form.positive or form.normalization == "count":
        raise ValueError(f"a prior known up to a constant needs a positive, normalized response, got {form}")
    rank = prior[0].shape[-1]
    for tokens, factor in zip((query, key), prior, strict=True):
        expected = (query.shape[1], tokens.shape[-2], rank)
        if tuple(factor.shape) not in (expected, (1, *expected[1:]), expected[1:]):
            raise ValueError(
                f"a factor of the prior must be {expected} or {expected[1:]}, got {tuple(factor.shape)}"
            )


def _check_mask(query: Tensor, key: Tensor, mask: Tensor) -> None:
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be boolean, true where a token is valid, got {mask.dtype}")
    if query.shape[-2] != key.shape[-2]:
        raise ValueError(
            "a mask needs queries and keys to be the same tokens, got "
            f"{query.shape[-2]} queries and {key.shape[-2]} keys"
        )
    expected = (query.shape[0], query.shape[-2])
    if tuple(mask.shape) != expected:
        raise ValueError(f"mask must be (batch, tokens) = {expected}, got {tuple(mask.shape)}")
