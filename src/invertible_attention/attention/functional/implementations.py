"""The implementations of attention, what each can do, and which one runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from invertible_attention._precision import wide_dtype
from invertible_attention.attention.functional import blocked, closed_form, flex, fused, reference, sorting
from invertible_attention.attention.functional.form import Form

__all__ = ["BY_NAME", "IMPLEMENTATIONS", "Implementation", "Problem", "choose"]

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
        has_prior: whether there is a prior in addition to the scores.
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

BY_NAME = {implementation.name: implementation for implementation in IMPLEMENTATIONS}


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
    if implementation not in BY_NAME:
        known = ", ".join(map(repr, ("auto", *BY_NAME)))
        raise ValueError(f"implementation must be one of {known}, got {implementation!r}")
    chosen = BY_NAME[implementation]
    refusal = chosen.refuses(problem)
    if refusal is not None:
        raise ValueError(f"implementation={implementation!r} {refusal}; got {problem.form}")
    return chosen
