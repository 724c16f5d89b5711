"""How one strip of scores becomes one strip of weights, with what their derivative needs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from invertible_attention.attention.functional.form import scores, split_prior
from invertible_attention.attention.functional.phi import PHI, PositivePhi
from invertible_attention.attention.functional.precision import accurate

__all__ = ["Weighting", "Weights"]


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
