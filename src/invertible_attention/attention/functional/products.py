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
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from invertible_attention._precision import accurate
from invertible_attention.attention.functional.form import PHI, PositivePhi, scores, split_prior
from invertible_attention.attention.functional.strips import Results, StripFunction, Tensors

__all__ = ["Adjoint", "Apply", "Gradient", "Weighting"]


# Columns up to which a CPU multiplies a strip, or its transposed, faster from the left: benchmarks/narrow_products.py.
_NARROW, _NARROW_TRANSPOSED = 4, 16


def _times(strip: Tensor, vectors: Tensor) -> Tensor:
    """Return ``strip @ vectors``."""
    return (vectors.mT @ strip.mT).mT if _at_most(_NARROW, vectors) else strip @ vectors


def _transposed_times(strip: Tensor, vectors: Tensor) -> Tensor:
    """Return ``strip.mT @ vectors``."""
    return (vectors.mT @ strip).mT if _at_most(_NARROW_TRANSPOSED, vectors) else strip.mT @ vectors


def _at_most(columns: int, vectors: Tensor) -> bool:
    return vectors.device.type == "cpu" and vectors.shape[-1] <= columns


@dataclass(frozen=True)
class Weights:
    """A strip of weights. Normalized weights are ``weight / total``; a ``total`` of ``None`` stands for 1.

    Args:
        weight: ``(batch, heads, rows, tokens)``.
        slope: with ``slope / total`` the derivative with respect to the scores, before the normalizer reacts.
        total: ``(batch, heads, rows, 1)`` or ``None``.
        log_total: logarithm of the sum of the row's weights, shifts included, where it was asked for; in float64,
            because the rounding of a large logarithm would be an error of the weights.
    """

    weight: Tensor
    slope: Tensor | None
    total: Tensor | None = None
    log_total: Tensor | None = None

    def divide(self, tensor: Tensor) -> Tensor:
        """Divide a tensor with one row per strip row by the total: cheaper than dividing the weights."""
        return tensor if self.total is None else tensor / self.total


@dataclass(frozen=True)
class Weighting:
    """The rule from scores to weights.

    Args:
        combine: how scores are formed.
        phi: the function applied to them.
        normalized: whether a row is divided by its sum.
        prior: number of features that form a prior; see :class:`.form.Form`.
    """

    combine: str
    phi: str
    normalized: bool = True
    prior: int = 0

    def weigh(
        self,
        x: Tensor,
        y: Tensor,
        log_prior: Tensor | None,
        valid: Tensor | None,
        *,
        slope: bool = False,
        log_total: bool = False,
    ) -> Weights:
        """Weigh the rows ``x`` of one strip against all tokens ``y``.

        Args:
            x: ``(batch, heads, rows, dim)``.
            y: ``(batch, heads, tokens, dim)``.
            log_prior: ``(1, heads or 1, rows, tokens)`` or ``None``.
            valid: ``(batch, 1, tokens, 1)``, false where a token of ``y`` is padding, or ``None``.
            slope: whether the slope is needed.
            log_total: whether the logarithm of the sum is needed (positive φ only).

        Returns:
            The weights.
        """
        phi = PHI[self.phi]
        guarded = log_prior is not None or valid is not None
        if self.prior:
            (x, prior_x), (y, prior_y) = split_prior(x, self.prior), split_prior(y, self.prior)
            prior = prior_x @ prior_y.mT
            log_prior = prior if log_prior is None else log_prior + prior
        score = scores(self.combine, x, y)
        if not (self.normalized and isinstance(phi, PositivePhi)):
            return self._linear(score, log_prior, valid, slope)
        if log_prior is None and valid is None and self.phi == "elu_plus_one":
            return _elu_plus_one(score)
        logarithm = phi.log(score)
        if log_prior is not None:
            logarithm = logarithm + log_prior
        if valid is not None:
            logarithm = logarithm.masked_fill(~valid.mT, -torch.inf)
        if log_total:
            weight, total, logarithm_of_total = _with_log_total(logarithm, guarded=guarded)
        else:
            weight, total, logarithm_of_total = _softmax(logarithm, guarded=guarded), None, None
        gradient = None
        if slope:
            gradient = weight if self.phi == "exp" else weight * phi.log_slope(score)
        return Weights(weight, gradient, total, logarithm_of_total)

    def _linear(self, score: Tensor, log_prior: Tensor | None, valid: Tensor | None, slope: bool) -> Weights:
        phi = PHI[self.phi]
        if log_prior is not None and isinstance(phi, PositivePhi):
            weight = torch.exp(phi.log(score) + log_prior)
            gradient = weight * phi.log_slope(score) if slope else None
        else:
            weight = phi.weight(score)
            gradient = phi.slope(score) if slope else None
        total = None
        if valid is not None:
            weight = weight.masked_fill(~valid.mT, 0.0)
            gradient = gradient if gradient is None else gradient.masked_fill(~valid.mT, 0.0)
        if self.normalized:
            total = weight.sum(-1, keepdim=True)
            if valid is not None:
                # Rows of padding, all of whose weights are zero.
                total = total.masked_fill((weight == 0.0).all(-1, keepdim=True), 1.0)
        return Weights(weight, gradient, total)


def _elu_plus_one(score: Tensor) -> Weights:
    # φ e^{-shift} without a logarithm: where every score of a row is negative, their maximum leaves the exponent.
    shift = torch.clamp(score.detach().amax(-1, keepdim=True), max=0.0)
    slope = torch.exp(torch.clamp(score, max=0.0) - shift)
    weight = slope + F.relu(score)
    total = weight.sum(-1, keepdim=True)
    return Weights(weight, slope, total, accurate(shift) + torch.log(accurate(total)))


def _softmax(logarithm: Tensor, *, guarded: bool) -> Tensor:
    if not guarded:
        return torch.softmax(logarithm, -1)
    # A row with no weight at all stays zero instead of becoming NaN.
    empty = (logarithm == -torch.inf).all(-1, keepdim=True)
    return torch.softmax(logarithm.masked_fill(empty, 0.0), -1).masked_fill(empty, 0.0)


def _with_log_total(logarithm: Tensor, *, guarded: bool) -> tuple[Tensor, Tensor, Tensor]:
    largest = logarithm.detach().amax(-1, keepdim=True)
    if guarded:
        largest = largest.masked_fill(largest == -torch.inf, 0.0)
    weight = torch.exp(logarithm - largest)
    total = weight.sum(-1, keepdim=True)
    if not guarded:
        return weight, total, accurate(largest) + torch.log(accurate(total))
    empty = total == 0.0
    total = total.masked_fill(empty, 1.0)
    return weight, total, (accurate(largest) + torch.log(accurate(total))).masked_fill(empty, -torch.inf)


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
        product = weights.divide(_times(weights.weight, w))
        if self.log_total:
            return (product, cast(Tensor, weights.log_total)), ()
        return (product,), ()

    def pullback(self, strips: int, wholes: int, wanted: Sequence[int]) -> StripFunction:
        """Return the gradients in closed form."""
        return Gradient(self.weighting, [self.arguments[index] for index in wanted])

    def pushforward(self, strips: int, wholes: int) -> StripFunction:
        """Return the tangents in closed form."""
        return _ApplyTangent(self.weighting, log_total=self.log_total)


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
        return (), (_transposed_times(weights.weight, weights.divide(u)),)

    def pullback(self, strips: int, wholes: int, wanted: Sequence[int]) -> StripFunction:
        """Return the gradients in closed form."""
        return Gradient(self.weighting, [self.arguments[index] for index in wanted])

    def pushforward(self, strips: int, wholes: int) -> StripFunction:
        """Return the tangents in closed form."""
        return _AdjointTangent(self.weighting)


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
            found["w"] = _transposed_times(weights.weight, scaled)
        if "u" in self.strips:
            found["u"] = weights.divide(_times(weights.weight, w))
        if {"x", "log_prior", "y"} & {*self.strips, *self.wholes}:
            pairs = scaled @ w.mT
            logarithm, score = self._change_of_scores(weights, pairs, log_total[0] if log_total else None)
            if "log_prior" in self.strips:
                found["log_prior"] = logarithm.sum_to_size(log_prior.shape)
            self._change_of_tokens(found, logarithm, score, x, y)
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
        center = weighted.sum(-1, keepdim=True)
        if log_total is not None:
            center = center - log_total.to(center.dtype)
        center = weights.divide(center)
        if slope is weights.weight or "log_prior" in self.strips or self.weighting.prior:
            weighted = torch.addcmul(weighted, weights.weight, center, value=-1.0)
        return weighted, weighted if slope is weights.weight else slope * (pairs - center)

    def _change_of_tokens(
        self, found: dict[str, Tensor], logarithm: Tensor, score: Tensor, x: Tensor, y: Tensor
    ) -> None:
        """Gradients with respect to the tokens from those with respect to the logarithms and the scores."""
        rank = self.weighting.prior
        (x, prior_x), (y, prior_y) = split_prior(x, rank), split_prior(y, rank)
        by_sum = self.weighting.combine == "sum"
        if "x" in self.strips:
            found["x"] = score.sum(-1, keepdim=True) if by_sum else _times(score, y)
            if rank:
                found["x"] = torch.cat((found["x"], _times(logarithm, prior_y)), -1)
        if "y" in self.wholes:
            found["y"] = score.sum(-2)[..., None] if by_sum else _transposed_times(score, x)
            if rank:
                found["y"] = torch.cat((found["y"], _transposed_times(logarithm, prior_x)), -1)


class _Tangent(StripFunction):
    def __init__(self, weighting: Weighting, *, log_total: bool = False) -> None:
        self.weighting, self.log_total = weighting, log_total

    def change(self, strips: Tensors, wholes: Tensors) -> tuple[Weights, Tensor, Tensor | None]:
        """Weights, their change before division by the total, and the change of the total's logarithm."""
        (x, log_prior, *_), (y, valid, *_) = strips, wholes
        dx, to_prior, dy = self.tangents(strips, wholes)
        weights = self.weighting.weigh(x, y, log_prior, valid, slope=True)
        change = None
        if dx is not None or dy is not None:
            dx, dy = torch.zeros_like(x) if dx is None else dx, torch.zeros_like(y) if dy is None else dy
            change = self._by_tokens(weights, x, y, dx, dy)
        if to_prior is not None:
            by_prior = weights.weight * to_prior
            change = by_prior if change is None else change + by_prior
        if change is None:
            change = torch.zeros_like(weights.weight)
        if not self.weighting.normalized:
            return weights, change, None
        rate = weights.divide(change.sum(-1, keepdim=True))
        return weights, torch.addcmul(change, weights.weight, rate, value=-1.0), rate

    def _by_tokens(self, weights: Weights, x: Tensor, y: Tensor, dx: Tensor, dy: Tensor) -> Tensor:
        combine, rank = self.weighting.combine, self.weighting.prior
        (x, prior_x), (y, prior_y) = split_prior(x, rank), split_prior(y, rank)
        (dx, prior_dx), (dy, prior_dy) = split_prior(dx, rank), split_prior(dy, rank)
        score = dx + dy.mT if combine == "sum" else scores(combine, dx, y) + scores(combine, x, dy)
        change = cast(Tensor, weights.slope) * score
        return change + weights.weight * (prior_dx @ prior_y.mT + prior_x @ prior_dy.mT) if rank else change

    @staticmethod
    def tangents(strips: Tensors, wholes: Tensors) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Tangents of ``x``, ``log_prior`` and ``y``: the second half of the arguments are tangents."""
        return strips[len(strips) // 2], strips[len(strips) // 2 + 1], wholes[len(wholes) // 2]


class _ApplyTangent(_Tangent):
    """Change of ``P w``, and on request of the logarithms of the rows' sums."""

    def __init__(self, weighting: Weighting, *, log_total: bool = False) -> None:
        super().__init__(weighting, log_total=log_total)
        self.pieces = 2 if log_total else 1

    def __call__(self, strips: Tensors, wholes: Tensors) -> Results:
        """Push a strip's tangents forward."""
        weights, change, rate = self.change(strips, wholes)
        w, dw = wholes[2], wholes[5]
        product = _times(change, w)
        product = product if dw is None else product + _times(weights.weight, dw)
        if self.log_total:
            return (weights.divide(product), accurate(cast(Tensor, rate))), ()
        return (weights.divide(product),), ()


class _AdjointTangent(_Tangent):
    r"""Change of :math:`P^\top u`."""

    pieces = 0

    def __call__(self, strips: Tensors, wholes: Tensors) -> Results:
        """Push a strip's tangents forward."""
        weights, change, _ = self.change(strips, wholes)
        u, du = strips[2], strips[5]
        product = _transposed_times(change, weights.divide(u))
        if du is not None:
            product = product + _transposed_times(weights.weight, weights.divide(du))
        return (), (product,)
