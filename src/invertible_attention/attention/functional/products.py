r"""Products with a response matrix, one strip of its rows at a time.

Everything attention needs is a product with a matrix :math:`P(x, y)` whose rows are weights normalized over the tokens
:math:`y` (or not at all):

- row normalization is :math:`P(q, k)\, v`;
- column normalization is the adjoint :math:`P(k, q)^\top v`;
- the gradients of both are those of the bilinear form :math:`\langle u, P w \rangle`: with
  :math:`g_{bn} = u_b \cdot w_n` and :math:`\omega` the weight before normalization,

.. math:: \frac{\partial}{\partial t_{bn}} \langle u, P w \rangle
          = P_{bn}\, \frac{\partial \log \omega_{bn}}{\partial t_{bn}} \Big(g_{bn} - \sum_m P_{bm} g_{bm}\Big).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from invertible_attention.attention.functional.strips import StripFunction, Tensors
from invertible_attention.attention.functional.weighting import Weighting, Weights

__all__ = ["Adjoint", "Apply", "Gradient"]

Results = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]


class Apply(StripFunction):
    """:math:`P w`, and on request the logarithm of each row's sum.

    Strips: ``x``, ``log_prior``. Wholes: ``y``, ``valid``, ``w``. One result per strip row, or two.
    """

    arguments = ("x", "log_prior", "y", "valid", "w")

    def __init__(self, weighting: Weighting, *, log_total: bool = False) -> None:
        self.weighting, self.log_total = weighting, log_total
        self.pieces = 2 if log_total else 1

    def __call__(self, strips: Tensors, wholes: Tensors) -> Results:
        """Multiply a strip."""
        x, log_prior = strips
        y, valid, w = wholes
        weights = self.weighting.weigh(x, y, log_prior, valid, log_total=self.log_total)
        product = weights.divide(weights.weight @ w)
        if self.log_total:
            return (product, cast(Tensor, weights.log_total)), ()
        return (product,), ()

    def pullback(self, strips: int, wholes: int, wanted: Sequence[int]) -> StripFunction:
        """Return the gradients in closed form."""
        return Gradient(self.weighting, [self.arguments[index] for index in wanted])


class Adjoint(StripFunction):
    r""":math:`P^\top u`. Strips: ``x``, ``log_prior``, ``u``. Wholes: ``y``, ``valid``. One sum."""

    arguments = ("x", "log_prior", "u", "y", "valid")
    pieces = 0

    def __init__(self, weighting: Weighting) -> None:
        self.weighting = weighting

    def __call__(self, strips: Tensors, wholes: Tensors) -> Results:
        """Multiply a strip, transposed."""
        x, log_prior, u = strips
        y, valid = wholes
        weights = self.weighting.weigh(x, y, log_prior, valid)
        return (), (weights.weight.mT @ weights.divide(u),)

    def pullback(self, strips: int, wholes: int, wanted: Sequence[int]) -> StripFunction:
        """Return the gradients in closed form."""
        return Gradient(self.weighting, [self.arguments[index] for index in wanted])


class Gradient(StripFunction):
    """Gradients of ``<u, P w>``, and of the logarithms of the rows' sums if they have a cotangent.

    Strips: ``x``, ``log_prior``, ``u``, optionally the cotangent of the logarithms. Wholes: ``y``, ``valid``, ``w``.

    Args:
        weighting: how scores become weights.
        wanted: names of the arguments to differentiate with respect to. Results come strips first, in this order.
    """

    def __init__(self, weighting: Weighting, wanted: Sequence[str]) -> None:
        self.weighting = weighting
        self.strips = [name for name in wanted if name in ("x", "log_prior", "u")]
        self.wholes = [name for name in wanted if name in ("y", "w")]
        self.pieces = len(self.strips)

    def __call__(self, strips: Tensors, wholes: Tensors) -> Results:
        """Differentiate a strip."""
        x, log_prior, u, *log_total = strips
        y, valid, w = wholes
        weights = self.weighting.weigh(x, y, log_prior, valid, slope=True)
        found: dict[str, Tensor] = {}
        scaled = weights.divide(u)
        if "w" in self.wholes:
            found["w"] = weights.weight.mT @ scaled
        if "u" in self.strips:
            found["u"] = weights.divide(weights.weight @ w)
        if {"x", "log_prior", "y"} & {*self.strips, *self.wholes}:
            pairs = scaled @ w.mT
            logarithm, score = self._change_of_scores(weights, pairs, log_total[0] if log_total else None)
            if "log_prior" in self.strips:
                found["log_prior"] = logarithm.sum_to_size(log_prior.shape)
            self._change_of_tokens(found, score, x, y)
        return tuple(found[name] for name in self.strips), tuple(found[name] for name in self.wholes)

    def _change_of_scores(
        self, weights: Weights, pairs: Tensor, log_total: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Gradients with respect to the logarithms of the weights and to the scores."""
        weighted = weights.weight * pairs
        slope = cast(Tensor, weights.slope)
        if not self.weighting.normalized:
            return weighted, slope * pairs
        # Summed from the very products it is subtracted from: what cancels, cancels exactly.
        centre = weighted.sum(-1, keepdim=True)
        if log_total is not None:
            centre = centre - log_total.to(centre.dtype)
        centre = weights.divide(centre)
        if slope is weights.weight or "log_prior" in self.strips:
            weighted = torch.addcmul(weighted, weights.weight, centre, value=-1.0)
        return weighted, weighted if slope is weights.weight else slope * (pairs - centre)

    def _change_of_tokens(self, found: dict[str, Tensor], score: Tensor, x: Tensor, y: Tensor) -> None:
        """Gradients with respect to the tokens from those with respect to the scores."""
        if self.weighting.combine == "sum":
            found["x"], found["y"] = score.sum(-1, keepdim=True), score.sum(-2)[..., None]
            return
        if "x" in self.strips:
            found["x"] = score @ y
        if "y" in self.wholes:
            found["y"] = score.mT @ x
