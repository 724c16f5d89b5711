r"""The series of what a linear part leaves, which is short, and what is left of that.

With a linear part :math:`J_0` near :math:`J` write :math:`I + J = (I + J_0)(I + M)`, so that
:math:`M = (I + J_0)^{-1}(J - J_0)` is small. Then after :math:`K` terms, whatever the size of :math:`M`,

.. math:: \log\det(I + M) = \sum_{k=1}^{K} \frac{(-1)^{k+1}}{k} \operatorname{tr} M^k
          + (-1)^K \int_0^1 s^K \operatorname{tr}\big(M^{K+1} (I + sM)^{-1}\big)\, ds

and :math:`(I + sM)^{-1} = (I + J_s)^{-1} (I + J_0)` with :math:`J_s = (1 - s) J_0 + s J`. A Lipschitz constant
:math:`c < 1` bounds the norm of :math:`J` and of :math:`J_0`, hence that of :math:`J_s`: the remainder can be bounded,
and estimated by a series that converges, though nothing is known of that in :math:`M`. Likewise
:math:`(I + J)^{-1} = \sum_{k<K} (-M)^k (I + J_0)^{-1} + (-M)^K (I + J)^{-1}` for the gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from invertible_attention._linear_part import LinearPart
from invertible_attention._mapped import plain
from invertible_attention.logdet.linearization import Linearization
from invertible_attention.logdet.probes import inner_product, sample_norm
from invertible_attention.logdet.series import Expand, Expansion

__all__ = ["ShortSeries", "as_number", "remaining"]

# Nats. What remains is about the norm of the last term's vector, so this decides what is worth another product.
_SMALL = 0.05
_RAREST = 0.01


@dataclass(frozen=True)
class ShortSeries:
    """At most so many terms of the series in :math:`M`, and now and then an unbiased estimate of what is left.

    The remainder is estimated with a probability that its size decides, and weighted by its inverse. As that is a
    function of the probe, nothing is biased, and what is small is rarely paid for.

    Args:
        terms: Most terms; fewer are evaluated where what is left is small, or would grow. Where it would, as many of
            the remainder's series are certain.
        uniform: Draws from the unit interval.
        tail: Draws how many terms of the remainder's series are evaluated, and returns their weights.
        gradient: Whether the vectors of the gradient are wanted.
        otherwise: Evaluated instead where there is no linear part.
    """

    terms: int
    uniform: Callable[[], float]
    tail: Callable[[], Sequence[float]]
    gradient: bool
    otherwise: Expand

    def __call__(
        self, linear: Linearization, part: LinearPart | None, probe: Tensor, *, differentiable: bool
    ) -> Expansion:
        """Evaluate the terms, and the remainder if it is its turn."""
        if part is None:
            return self.otherwise(linear, part, probe, differentiable=differentiable)
        value = inner_product(probe, torch.zeros_like(probe))
        reference = part.solve(probe, transposed=True)
        vector, left, size = probe, torch.zeros_like(probe), sample_norm(probe)
        short = torch.ones_like(size, dtype=torch.bool)
        count = torch.zeros_like(size)
        for k in range(self.terms):
            solved = reference if k == 0 else part.solve(vector, transposed=True)
            following = remaining(linear, part, solved, differentiable)
            norm = sample_norm(following)
            # Where the linear part is far from the Jacobian the series may grow: there it ends before it does.
            short = short & (norm < size)
            each = _each(short, probe)
            left = torch.where(each, left + (-1) ** k * solved, left)
            value = torch.where(short, value + (-1) ** k / (k + 1) * inner_product(following, probe), value)
            vector = torch.where(each, following, vector)
            size = torch.where(short, norm, size)
            count = count + short
            if as_number(torch.where(short, size, 0.0)) <= _SMALL:
                break
        chance = min(1.0, max(as_number(size), _RAREST))
        if self.uniform() < chance:
            exact = 0 if as_number((~short).to(size)) == 0 else self.terms
            sign = (1 - 2 * (count % 2)) / chance
            # A power of a uniform variable has the density (K + 1) s^K that the integral asks for.
            s = _each(self.uniform() ** (1 / (count + 1)), probe).to(probe.dtype)
            further = remaining(linear, part, part.solve(vector, transposed=True), differentiable)
            between = self._inverse(linear, part, further, s, exact, differentiable)
            right = probe + part.apply(probe)
            value = value + sign / (count + 1) * inner_product(between, right)
            if self.gradient:
                rest = self._inverse(linear, part, vector, 1.0, exact, False)
                left = left + _each(sign, probe).to(probe.dtype) * rest
        return Expansion(value, left.detach(), reference.detach())

    def _inverse(
        self,
        linear: Linearization,
        part: LinearPart,
        z: Tensor,
        s: float | Tensor,
        exact: int,
        differentiable: bool,
    ) -> Tensor:
        """Return an unbiased estimate of ``(I + J_s)⁻ᵀ z``."""
        total = term = z
        for weight in [1.0] * exact + [*self.tail()]:
            product = linear.vjp(term, differentiable=differentiable)
            term = -(s * product + (1 - s) * part.apply(term, transposed=True))
            total = total + weight * term
        return total


def _each(values: Tensor, like: Tensor) -> Tensor:
    """Return values per sample in a shape that multiplies samples."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def remaining(linear: Linearization, part: LinearPart, solved: Tensor, differentiable: bool) -> Tensor:
    """Return ``Mᵀ w``, given ``(I + J₀)⁻ᵀ w``."""
    return linear.vjp(solved, differentiable=differentiable) - part.apply(solved, transposed=True)


def as_number(values: float | Tensor) -> float:
    """Return the largest entry as a number, over all that a function transform makes of it."""
    if not isinstance(values, Tensor):
        return values
    values = plain(values)
    return (values.amax() if values.ndim else values).item()
