"""Which attention is meant: how scores are formed, turned into weights and normalized."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor

from invertible_attention.attention.functional.phi import PHI, Phi

__all__ = ["Combine", "Form", "Normalization", "scores", "split_prior"]

Combine = Literal["product", "sum"]
Normalization = Literal["column", "row", "all", "count"]


@dataclass(frozen=True)
class Form:
    r"""The response matrix's definition, :math:`R_{ij} = \varphi(t_{ij}) / Z`.

    Args:
        combine: ``"product"`` for :math:`t_{ij} = q_i \cdot k_j`, ``"sum"`` for :math:`t_{ij} = q_i + k_j`.
        phi: a name from :data:`~invertible_attention.attention.functional.phi.PHI`.
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
        for name, given, known in (
            ("combine", self.combine, get_args(Combine)),
            ("phi", self.phi, tuple(PHI)),
            ("normalization", self.normalization, get_args(Normalization)),
        ):
            if given not in known:
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
