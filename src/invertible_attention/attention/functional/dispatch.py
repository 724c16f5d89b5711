"""Attention of any form: its arguments checked, the implementation chosen, and the call."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from invertible_attention._precision import wide_dtype, working_dtype
from invertible_attention.attention.functional import blocked, closed_form, flex, fused, reference, sorting
from invertible_attention.attention.functional.form import Form

__all__ = ["IMPLEMENTATIONS", "Implementation", "Problem", "attend", "check", "choose"]

# Thresholds measured on two cores (benchmarks/attention.py). Up to this many scores, over the whole batch, the N×N
# matrix stays in the caches and nothing is faster, derivatives included.
_SMALL_SCORES = 2**19
# Below this many tokens sorting costs more per token than all its scores do, however large the batch.
_SORTED_TOKENS = {"elu_plus_one": 128, "elu": 128, "softplus": 2048}


@dataclass(frozen=True)
class Problem:
    """What is to be computed, without the data.

    Args:
        form: how scores are formed, turned into weights and normalized.
        batch: samples times heads.
        queries: number of queries.
        keys: number of keys.
        device: where the data is.
        has_prior: whether there is a prior beside the scores.
        has_mask: whether there is a padding mask.
    """

    form: Form
    batch: int
    queries: int
    keys: int
    device: torch.device
    has_prior: bool = False
    has_mask: bool = False

    @property
    def scores(self) -> int:
        """Number of entries of all score matrices."""
        return self.batch * self.queries * self.keys


@dataclass(frozen=True)
class Implementation:
    """One way to compute attention.

    Args:
        name: what ``implementation=`` calls it.
        compute: the function, of query, key, value, form, prior and mask.
        cost: time and memory in the number of tokens N.
        reason: why it is preferred where it is.
        refuses: returns why it cannot solve a problem, or ``None``.
        preferred: whether ``"auto"`` takes it for a problem it can solve.
        traceable: whether ``torch.compile`` sees through it; else it is one operator there.
    """

    name: str
    compute: Callable[..., Tensor]
    cost: str
    reason: str
    refuses: Callable[[Problem], str | None]
    preferred: Callable[[Problem], bool]
    traceable: bool = False

    def run(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        form: Form,
        log_prior: Tensor | None,
        mask: Tensor | None,
    ) -> Tensor:
        """Call the function; only those that can take a prior or a mask are ever given one."""
        more = () if log_prior is None and mask is None else (log_prior, mask)
        return self.compute(query, key, value, form, *more)


def _plain(problem: Problem) -> str | None:
    if problem.has_prior or problem.has_mask:
        return "takes neither log_prior nor mask"
    return None


def _closed_form_refuses(problem: Problem) -> str | None:
    form = problem.form
    if form.phi == "identity" or (form.phi == "exp" and form.combine == "sum"):
        return _plain(problem)
    return 'needs phi="identity", or phi="exp" with combine="sum": other sums over pairs do not come apart'


def _sorted_refuses(problem: Problem) -> str | None:
    if problem.form.combine != "sum" or problem.form.phi not in sorting.EXPANSIONS:
        known = ", ".join(map(repr, sorting.EXPANSIONS))
        return f'needs combine="sum" and a phi among {known}: only sums can be sorted'
    if wide_dtype(problem.device) != torch.float64:
        return "needs float64, which the device does not have"
    return _plain(problem)


def _prefers_sorted(problem: Problem) -> bool:
    if torch.compiler.is_exporting():
        return False
    tokens = min(problem.queries, problem.keys)
    return problem.scores > _SMALL_SCORES and tokens >= _SORTED_TOKENS[problem.form.phi]


def _flash_refuses(problem: Problem) -> str | None:
    form = problem.form
    if form.combine != "product" or form.phi != "exp" or form.normalization == "count":
        return 'needs combine="product", phi="exp" and a normalized response: fused kernels compute a softmax'
    if form.normalization == "all" and isinstance(fused.kernel_for(problem.device), fused.PortableKernel):
        return (
            f"cannot normalize over all pairs on {problem.device.type}: its kernel keeps the sums to itself"
        )
    return _plain(problem)


def _flex_refuses(problem: Problem) -> str | None:
    form = problem.form
    if form.combine != "product" or not form.positive or form.normalization == "count":
        return 'needs combine="product", a positive phi and a normalized response: it computes a softmax'
    if torch.compiler.is_compiling():
        return "compiles itself, and cannot be part of another compilation"
    return _plain(problem)


IMPLEMENTATIONS: tuple[Implementation, ...] = (
    Implementation(
        "closed_form",
        closed_form.attend,
        cost="O(N) time and memory",
        reason="the sums over pairs come apart, so no matrix is needed at any size",
        refuses=_closed_form_refuses,
        preferred=lambda problem: True,
        traceable=True,
    ),
    Implementation(
        "sorted",
        sorting.attend,
        cost="O(N log N) time, O(N) memory",
        reason="running sums over sorted scores: no pair is ever formed, though one token costs as much as many pairs",
        refuses=_sorted_refuses,
        preferred=_prefers_sorted,
    ),
    Implementation(
        "reference",
        reference.attend,
        cost="O(N²) time and memory",
        reason="the whole matrix fits the caches: fewest operations, every derivative by autograd",
        refuses=lambda problem: None,
        preferred=lambda problem: problem.scores <= _SMALL_SCORES or torch.compiler.is_exporting(),
        traceable=True,
    ),
    Implementation(
        "flash",
        fused.attend,
        cost="O(N²) time, O(N) memory",
        reason="fused kernels of the device; on a CPU strips for the values of column normalization, in one pass",
        refuses=_flash_refuses,
        preferred=lambda problem: True,
    ),
    Implementation(
        "flex",
        lambda query, key, value, form: fused.attend(query, key, value, form, flex.FlexKernel(form.phi)),
        cost="O(N²) time, O(N) memory",
        reason="one fused kernel compiled for the φ, where there is a GPU and a compiler for it",
        refuses=_flex_refuses,
        preferred=lambda problem: flex.is_compiled_on(problem.device),
    ),
    Implementation(
        "blocked",
        blocked.attend,
        cost="O(N²) time, O(N) memory",
        reason="any form, prior and mask, strip by strip in the caches; recomputed for derivatives of any order",
        refuses=lambda problem: None,
        preferred=lambda problem: True,
    ),
)
"""Every implementation, in order of preference: ``"auto"`` takes the first that can and is preferred."""

_BY_NAME = {implementation.name: implementation for implementation in IMPLEMENTATIONS}


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
        return _compute(chosen, query, key, value, form, log_prior, mask).to(given)


def _compute(
    chosen: Implementation,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    form: Form,
    log_prior: Tensor | None,
    mask: Tensor | None,
) -> Tensor:
    if torch.compiler.is_compiling() and not chosen.traceable:
        names = (form.combine, form.phi, form.normalization, form.prior, chosen.name)
        return _operator(query, key, value, log_prior, mask, *names)
    return chosen.run(query, key, value, form, log_prior, mask)


def choose(problem: Problem, implementation: str = "auto") -> Implementation:
    """Choose the implementation for a problem.

    Args:
        problem: what is to be computed.
        implementation: ``"auto"`` or a name from :data:`IMPLEMENTATIONS`.

    Returns:
        The implementation.

    Raises:
        ValueError: if the name is unknown, or its implementation cannot solve the problem, with the reason.
    """
    if implementation == "auto":
        return next(
            candidate
            for candidate in IMPLEMENTATIONS
            if candidate.refuses(problem) is None and candidate.preferred(problem)
        )
    if implementation not in _BY_NAME:
        known = ", ".join(map(repr, ("auto", *_BY_NAME)))
        raise ValueError(f"implementation must be one of {known}, got {implementation!r}")
    chosen = _BY_NAME[implementation]
    refusal = chosen.refuses(problem)
    if refusal is not None:
        raise ValueError(f"implementation={implementation!r} {refusal}; got {problem.form}")
    return chosen


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


# What torch.compile should run and not trace, loops and kernels, is a single operator there. Its arguments are written
# out, because torch cannot read the annotations of functions whose arguments are checked at run time.
_ARGUMENTS = (
    "Tensor query, Tensor key, Tensor value, Tensor? log_prior, Tensor? mask, "
    "str combine, str phi, str normalization, int prior, str implementation"
)


@torch.library.custom_op("invertible_attention::attend", mutates_args=(), schema=f"({_ARGUMENTS}) -> Tensor")
def _operator(
    query: Tensor, key: Tensor, value: Tensor, log_prior: Tensor | None, mask: Tensor | None, *names: Any
) -> Tensor:
    """Compute attention with the named implementation; differentiable once, like all of a compiled graph."""
    *form, implementation = names
    return _BY_NAME[implementation].run(query, key, value, Form(*form), log_prior, mask).contiguous()


@_operator.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> Tensor:
    return query.new_empty((*query.shape[:-1], value.shape[-1]))


@torch.library.custom_op(
    "invertible_attention::attend_backward",
    mutates_args=(),
    schema=f"(Tensor cotangent, {_ARGUMENTS}) -> Tensor[]",
)
def _operator_backward(
    cotangent: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_prior: Tensor | None,
    mask: Tensor | None,
    *names: Any,
) -> list[Tensor]:
    *form, implementation = names

    def result(query: Tensor, key: Tensor, value: Tensor, log_prior: Tensor | None = None) -> Tensor:
        return _BY_NAME[implementation].run(query, key, value, Form(*form), log_prior, mask)

    # An operator's body runs below autograd; a functional transform brings its own.
    differentiable = [tensor for tensor in (query, key, value, log_prior) if tensor is not None]
    pull = torch.func.vjp(result, *differentiable)[1]
    return [gradient.contiguous() for gradient in pull(cotangent)]


@_operator_backward.register_fake
def _(cotangent: Tensor, *tensors: Any) -> list[Tensor]:
    differentiable = [tensor for tensor in tensors[:4] if tensor is not None]
    return [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in differentiable]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.names = inputs[5:]


def _backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
    *gradients, to_prior = (*_operator_backward(cotangent, *ctx.saved_tensors, *ctx.names), None)[:4]
    return (*gradients, to_prior, *[None] * (1 + len(ctx.names)))


_operator.register_autograd(_backward, setup_context=_setup_context)
