"""What limits the Lipschitz constant of an attention branch: :class:`Certified` or :class:`Relaxed`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Certified", "Constraint", "Relaxed", "Unconstrained"]


class Constraint(ABC):
    """Base class of constraints: small frozen objects, shared freely between layers."""

    @abstractmethod
    def gain(self, log_bound: Float[Tensor, "*batch"]) -> Tensor | float:
        """Factor the branch is multiplied by, given the logarithm of its bound without that factor."""

    @abstractmethod
    def lipschitz_bound(self, log_bound: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """Promised Lipschitz constant of the branch, ``inf`` if none."""


@dataclass(frozen=True)
class Certified(Constraint):
    r"""Guarantees a Lipschitz constant below ``coefficient``, whatever the weights and the input.

    The branch sees tokens projected on a ball of radius ρ and is scaled by
    :math:`\min(1, c / (\|W_L\|_2 L(A)))`, with the bound :math:`L(A)` of
    :mod:`invertible_attention.lipschitz.certificate`. Both are differentiable: training chooses how to spend
    the budget.

    Args:
        coefficient: :math:`c \in (0, 1)`.
        radius: ρ. ``None`` makes it a parameter, set from the first batch to its largest token norm.

    Raises:
        ValueError: If the coefficient is outside (0, 1) or the radius is not positive and finite.
    """

    coefficient: float = 0.9
    radius: float | None = None

    def __post_init__(self) -> None:
        _check_coefficient(self.coefficient)
        if self.radius is not None and not (self.radius > 0 and math.isfinite(self.radius)):
            raise ValueError(f"radius must be positive and finite, got {self.radius}")

    def gain(self, log_bound: Float[Tensor, "*batch"]) -> Tensor:
        r""":math:`\min(1, c / \text{bound})`."""
        return torch.exp((math.log(self.coefficient) - log_bound).clamp_max(0.0))

    def lipschitz_bound(self, log_bound: Float[Tensor, ""]) -> Float[Tensor, ""]:
        r""":math:`\min(c, \text{bound})`."""
        return torch.exp(log_bound.clamp_max(math.log(self.coefficient)))


@dataclass(frozen=True)
class Relaxed(Constraint):
    r"""The paper's own constraint (Section 2.4), kept for reproduction. It promises nothing.

    :math:`\|W_F\|_2 \le c` and :math:`\|W_L\|_2 \le c`, weights that sum to ``column_sum``, and no bound on how
    fast the weights move with the input. :func:`invertible_attention.audit` says how a trained layer does.
    The tricks of Appendix C are the arguments: a smaller ``coefficient``, a smaller ``column_sum``,
    ``constrain_response``, and ``normalization="all"`` of the layer.

    Args:
        coefficient: :math:`c \in (0, 1)`.
        column_sum: What normalized weights sum to, in (0, 1].
        constrain_response: Whether the response's transforms :math:`W_1, W_2` (or a, b) are constrained to
            norm :math:`c` too.

    Raises:
        ValueError: If the coefficient is outside (0, 1) or the column sum outside (0, 1].
    """

    coefficient: float = 0.9
    column_sum: float = 1.0
    constrain_response: bool = False

    def __post_init__(self) -> None:
        _check_coefficient(self.coefficient)
        if not 0 < self.column_sum <= 1:
            raise ValueError(f"column_sum must be in (0, 1], got {self.column_sum}")

    def gain(self, log_bound: Float[Tensor, "*batch"]) -> float:
        """The column sum."""
        return self.column_sum

    def lipschitz_bound(self, log_bound: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """Infinity: nothing is promised."""
        return torch.full_like(log_bound, math.inf)


@dataclass(frozen=True)
class Unconstrained(Constraint):
    """No constraint: ordinary attention."""

    def gain(self, log_bound: Float[Tensor, "*batch"]) -> float:
        """One."""
        return 1.0

    def lipschitz_bound(self, log_bound: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """Infinity: nothing is promised."""
        return torch.full_like(log_bound, math.inf)


def _check_coefficient(coefficient: float) -> None:
    if not 0 < coefficient < 1:
        raise ValueError(f"coefficient must be in (0, 1), got {coefficient}")
