r"""The form of attention: how scores are combined, turned into weights by a function φ, and normalized."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "PHI",
    "Form",
    "Phi",
    "PositivePhi",
    "log_phi",
    "scores",
    "split_prior",
]


# Below this score the series of log softplus, cut after exp(3t), is exact to float64.
_SOFTPLUS_SERIES_BELOW = -10.0
# Above this score softplus(t) = t to float64; torch's default of 20 is only good for float32.
_SOFTPLUS_LINEAR_ABOVE = 40.0


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
        # Exact where elu(t) + 1 would round to zero; the second derivative is taken from the left at zero.
        return torch.clamp(score, max=0.0) + torch.log1p(F.relu(score))

    def log_slope(self, score: Tensor) -> Tensor:
        return 1.0 / (1.0 + F.relu(score))


class _Softplus(PositivePhi):
    def weight(self, score: Tensor) -> Tensor:
        return _softplus(score)

    def slope(self, score: Tensor) -> Tensor:
        return torch.sigmoid(score)

    def log(self, score: Tensor) -> Tensor:
        x = torch.exp(torch.clamp(score, max=_SOFTPLUS_SERIES_BELOW))
        series = score + x * (-0.5 + x * (5 / 24 - x / 8))
        direct = torch.log(_softplus(torch.clamp(score, min=_SOFTPLUS_SERIES_BELOW)))
        return torch.where(score < _SOFTPLUS_SERIES_BELOW, series, direct)

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


_KNOWN = {
    "combine": ("product", "sum"),
    "phi": tuple(PHI),
    "normalization": ("column", "row", "all", "count"),
}


@dataclass(frozen=True)
class Form:
    r"""The response matrix's definition, :math:`R_{ij} = \varphi(t_{ij}) / Z`.

    Args:
        combine: ``"product"`` for :math:`t_{ij} = q_i \cdot k_j`, ``"sum"`` for :math:`t_{ij} = q_i + k_j`.
        phi: a name from :data:`~invertible_attention.attention.functional.form.PHI`.
        normalization: what :math:`Z` sums over: ``"column"`` i, ``"row"`` j, ``"all"`` both; ``"count"`` divides by
            the number of keys.
        prior: how many of the last features :math:`q', k'` of queries and keys are not scored but form a prior that
            multiplies the weights, :math:`\pi_{ij} = e^{q'_i \cdot k'_j}`.

    Raises:
        ValueError: on an unknown name.
    """

    combine: str
    phi: str
    normalization: str
    prior: int = 0

    def __post_init__(self) -> None:
        for name, known in _KNOWN.items():
            if (given := getattr(self, name)) not in known:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {given!r}")

    @property
    def function(self) -> Phi:
        """The φ itself."""
        return PHI[self.phi]

    @property
    def positive(self) -> bool:
        """Whether every weight is positive, so that the normalizer cannot vanish."""
        return self.function.positive

    def __str__(self) -> str:
        return f"combine={self.combine!r}, phi={self.phi!r}, normalization={self.normalization!r}"


def scores(
    combine: str, left: Float[Tensor, "*batch n dim"], right: Float[Tensor, "*batch m dim"]
) -> Float[Tensor, "*batch n m"]:
    """Score every pair, by inner product or (for one feature) by sum.

    Args:
        combine: ``"product"`` or ``"sum"``.
        left: tokens along the rows of the result.
        right: tokens along its columns.

    Returns:
        The matrix of scores.
    """
    return left @ right.mT if combine == "product" else left + right.mT


def split_prior(
    tokens: Float[Tensor, "*batch n dim"], rank: int
) -> tuple[Float[Tensor, "*batch n scored"], Float[Tensor, "*batch n rank"]]:
    """Split queries or keys into the features that are scored and those of the prior.

    Args:
        tokens: queries or keys.
        rank: number of features of the prior.

    Returns:
        Both parts.
    """
    scored = tokens.shape[-1] - rank
    return tokens[..., :scored], tokens[..., scored:]
