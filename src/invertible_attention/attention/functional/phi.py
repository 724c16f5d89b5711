"""The functions φ that turn a score into a weight, with the forms that neither overflow nor underflow."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

__all__ = ["PHI", "Phi", "PhiName", "PositivePhi", "log_elu_plus_one", "log_phi", "log_softplus"]

PhiName = Literal["exp", "elu_plus_one", "softplus", "elu", "identity"]

# Below this score the series of log softplus, cut after exp(3t), is exact to float64.
_SOFTPLUS_SERIES_BELOW = -10.0
# Above this score softplus(t) = t to float64; torch's default of 20 is only good for float32.
_SOFTPLUS_LINEAR_ABOVE = 40.0


def log_elu_plus_one(score: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r"""Logarithm of :math:`\mathrm{elu}(t) + 1`, exact where ``elu(t) + 1`` would round to zero.

    .. math::
        \log(\mathrm{elu}(t) + 1) = \begin{cases} t & t \le 0 \\ \log(1 + t) & t > 0 \end{cases}

    Args:
        score: any shape.

    Returns:
        Same shape. First derivative in (0, 1], continuous; the second is taken from the left at zero.

    Example:
        >>> log_elu_plus_one(torch.tensor([-1000.0, 0.0, 1.0]))
        tensor([-1.0000e+03,  0.0000e+00,  6.9315e-01])
    """
    positive = F.relu(score)
    return torch.clamp(score, max=0.0) + torch.log1p(positive)


def log_softplus(score: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r"""Logarithm of :math:`\log(1 + e^t)`, which tends to t for very negative scores.

    Args:
        score: any shape.

    Returns:
        Same shape.

    Example:
        >>> log_softplus(torch.tensor([-1000.0, 0.0, 1000.0]))
        tensor([-1.0000e+03, -3.6651e-01,  6.9078e+00])
    """
    x = torch.exp(torch.clamp(score, max=_SOFTPLUS_SERIES_BELOW))
    series = score + x * (-0.5 + x * (5 / 24 - x / 8))
    direct = torch.log(_softplus(torch.clamp(score, min=_SOFTPLUS_SERIES_BELOW)))
    return torch.where(score < _SOFTPLUS_SERIES_BELOW, series, direct)


def _softplus(score: Tensor) -> Tensor:
    return F.softplus(score, threshold=_SOFTPLUS_LINEAR_ABOVE)


class Phi(ABC):
    """A function from scores to weights, and its derivative."""

    positive: bool = False

    @abstractmethod
    def weight(self, score: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return φ(t)."""

    @abstractmethod
    def slope(self, score: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return φ'(t)."""


class PositivePhi(Phi):
    """A positive φ, known through its logarithm so that it can be normalized by shifting the exponent."""

    positive = True

    @abstractmethod
    def log(self, score: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return log φ(t)."""

    @abstractmethod
    def log_slope(self, score: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the derivative of log φ at t; at most 1 for every φ here, which the certificate uses."""


class _Exp(PositivePhi):
    def weight(self, score: Tensor) -> Tensor:
        return torch.exp(score)

    def slope(self, score: Tensor) -> Tensor:
        return torch.exp(score)

    def log(self, score: Tensor) -> Tensor:
        return score

    def log_slope(self, score: Tensor) -> Tensor:
        return torch.ones_like(score)


class _EluPlusOne(PositivePhi):
    def weight(self, score: Tensor) -> Tensor:
        # exp(min(t, 0)) + max(t, 0) keeps the relative accuracy that elu(t) + 1 loses for t < 0.
        return torch.exp(torch.clamp(score, max=0.0)) + F.relu(score)

    def slope(self, score: Tensor) -> Tensor:
        return torch.exp(torch.clamp(score, max=0.0))

    def log(self, score: Tensor) -> Tensor:
        return log_elu_plus_one(score)

    def log_slope(self, score: Tensor) -> Tensor:
        return 1.0 / (1.0 + F.relu(score))


class _Softplus(PositivePhi):
    def weight(self, score: Tensor) -> Tensor:
        return _softplus(score)

    def slope(self, score: Tensor) -> Tensor:
        return torch.sigmoid(score)

    def log(self, score: Tensor) -> Tensor:
        return log_softplus(score)

    def log_slope(self, score: Tensor) -> Tensor:
        x = torch.exp(torch.clamp(score, max=_SOFTPLUS_SERIES_BELOW))
        series = 1.0 + x * (-0.5 + x * (5 / 12 - x * (3 / 8)))
        safe = torch.clamp(score, min=_SOFTPLUS_SERIES_BELOW)
        return torch.where(score < _SOFTPLUS_SERIES_BELOW, series, torch.sigmoid(safe) / _softplus(safe))


class _Elu(Phi):
    def weight(self, score: Tensor) -> Tensor:
        return torch.expm1(torch.clamp(score, max=0.0)) + F.relu(score)

    def slope(self, score: Tensor) -> Tensor:
        return torch.exp(torch.clamp(score, max=0.0))


class _Identity(Phi):
    def weight(self, score: Tensor) -> Tensor:
        return score

    def slope(self, score: Tensor) -> Tensor:
        return torch.ones_like(score)


PHI: Mapping[str, Phi] = MappingProxyType(
    {
        "exp": _Exp(),
        "elu_plus_one": _EluPlusOne(),
        "softplus": _Softplus(),
        "elu": _Elu(),
        "identity": _Identity(),
    }
)
"""Every φ by name. ``elu`` (the authors' released code) and ``identity`` (Wang et al.) may be negative."""


def log_phi(score: Float[Tensor, "*shape"], phi: str) -> Float[Tensor, "*shape"]:
    """Logarithm of a positive φ, evaluated without overflow or underflow.

    Args:
        score: any shape.
        phi: ``"exp"``, ``"elu_plus_one"`` or ``"softplus"``.

    Returns:
        Same shape.

    Raises:
        ValueError: if ``phi`` is unknown or may be negative.

    Example:
        >>> log_phi(torch.tensor([-200.0, 0.0]), "softplus")
        tensor([-200.0000,   -0.3665])
    """
    function = PHI.get(phi)
    if not isinstance(function, PositivePhi):
        positive = [name for name, candidate in PHI.items() if candidate.positive]
        raise ValueError(f"the logarithm needs a positive phi, one of {positive}, got {phi!r}")
    return function.log(score)
