"""Attention of any form: its arguments checked, the implementation chosen, and the call."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from invertible_attention._precision import working_dtype
from invertible_attention.attention.functional.compiled import compute
from invertible_attention.attention.functional.form import Form
from invertible_attention.attention.functional.implementations import Problem, choose

__all__ = ["attend", "check"]


def attend(
    query: Float[Tensor, "batch heads queries dim"],
    key: Float[Tensor, "batch heads keys dim"],
    value: Float[Tensor, "batch heads keys features"],
    *,
    combine: str,
    phi: str,
    normalization: str,
    log_prior: Float[Tensor, "*heads queries keys"] | None = None,
    prior: tuple[Float[Tensor, "*heads queries rank"], Float[Tensor, "*heads keys rank"]] | None = None,
    mask: Bool[Tensor, "batch tokens"] | None = None,
    implementation: str = "auto",
) -> Float[Tensor, "batch heads queries features"]:
    r"""Attention of any response and normalization, exactly, by the fastest way for its size and device.

    .. math:: o_i = \sum_j R_{ij} v_j, \qquad R_{ij} = \pi_{ij}\, \varphi(t_{ij}) / Z

    Every implementation gives the same result up to rounding and can be differentiated to any order, in reverse and
    forward mode, under :mod:`torch.func`, and once under ``torch.compile``. Samples do not affect each other: a NaN
    stays in its own.

    Args:
        query: queries. float16 and bfloat16 are computed in float32 and rounded once, at the end; so is everything
            under autocast. The relative error is then that of the rounded inputs and output, 2⁻⁹ for bfloat16 and
            2⁻¹² for float16 each.
        key: keys.
        value: values.
        combine: ``"product"`` for :math:`t_{ij} = q_i \cdot k_j` (not divided by :math:`\sqrt{D}`), ``"sum"`` for
            :math:`t_{ij} = q_i + k_j` of single features.
        phi: ``"exp"``, ``"elu_plus_one"`` or ``"softplus"``, positive and normalized by shifting the exponent, so
            that no score overflows; or ``"elu"`` (the paper's released code) and ``"identity"`` (Wang et al. 2018),
            whose weights change sign and whose sums may vanish.
        normalization: what :math:`Z` sums the weights over: ``"column"`` i (the paper, Table 1), ``"row"`` j
            (ordinary attention), ``"all"`` both (Appendix C, trick 6); or ``"count"``, the number of keys.
        log_prior: :math:`\log \pi`, for positive φ. Minus infinity forbids a pair, as in causal attention; a row or
            column with nothing left is zero.
        prior: another factor of the weights, in O(N) memory: :math:`q', k'` with
            :math:`\log \pi_{ij} = q'_i \cdot k'_j` up to a constant, for positive φ and normalized responses.
        mask: true where a token is valid. Others neither attend nor are attended to, whatever they contain, and
            their output is zero.
        implementation: ``"auto"``, or one of :data:`IMPLEMENTATIONS`, which says what each is for.

    Returns:
        One row per query, in the inputs' dtype.

    Raises:
        ValueError: on arguments that do not fit each other, or an implementation that cannot do this.

    Example:
        >>> tokens = torch.tensor([[[[0.0], [1.0]]]])
        >>> attend(tokens, tokens, tokens, combine="sum", phi="elu_plus_one", normalization="column")
        tensor([[[[0.4000],
                  [0.6000]]]])
    """
    form = Form(combine, phi, normalization)
    problem = check(query, key, value, form, log_prior, mask, prior)
    given = torch.promote_types(torch.promote_types(query.dtype, key.dtype), value.dtype)
    working = working_dtype(given)
    query, key, value = query.to(working), key.to(working), value.to(working)
    log_prior = None if log_prior is None else log_prior.to(working)
    if prior is not None:
        query, key = (
            torch.cat((tokens, factor.to(working).expand(*tokens.shape[:-1], -1)), -1)
            for tokens, factor in zip((query, key), prior, strict=True)
        )
        # The logarithm of the prior is one more inner product: where scores are weighted by exp, a part of them.
        if (combine, phi) != ("product", "exp"):
            form = replace(form, prior=prior[0].shape[-1])
        problem = replace(problem, form=form, has_prior=form.prior > 0 or problem.has_prior)
    chosen = choose(problem, implementation)
    if mask is not None:
        padding = ~mask[:, None, :, None]
        query, key, value = (tensor.masked_fill(padding, 0.0) for tensor in (query, key, value))
    autocast = torch.is_autocast_enabled(query.device.type)
    with torch.autocast(query.device.type, enabled=False) if autocast else nullcontext():
        return compute(chosen, query, key, value, form, log_prior, mask).to(given)


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
    batch, heads, queries, _ = query.shape
    return Problem(
        form=form,
        batch=batch * heads,
        queries=queries,
        keys=key.shape[-2],
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
