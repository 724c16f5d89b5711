r"""φ written as exponentials and a straight line on either side of zero: what lets sums over pairs come apart.

.. math:: \varphi(t) = o + \begin{cases} \sum_k c_k e^{kt} & t \le 0 \\
          \alpha + t + \sum_k d_k e^{-kt} & t > 0 \end{cases}

Every term separates in :math:`t = a + b`, so a sum over pairs is a few running sums over sorted tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch

__all__ = ["EXPANSIONS", "Expansion", "expansion"]


@dataclass(frozen=True)
class Expansion:
    r"""The terms of one φ.

    Args:
        below: :math:`c_1, c_2, \dots`, for scores up to zero.
        above: :math:`d_1, d_2, \dots`, for positive scores.
        intercept: :math:`\alpha`.
        offset: :math:`o`, for every score.
    """

    below: tuple[float, ...]
    above: tuple[float, ...] = ()
    intercept: float = 0.0
    offset: float = 0.0


# softplus(t) = max(t, 0) + log(1 + e^{-|t|}) has no finite expansion. log(1 + x) / x is analytic on [0, 1] with its
# singularity at -1, so its Chebyshev interpolant of degree n errs by (3 + 2 √2)^{-n} at most up to a factor of about
# one. The coefficients below were computed with 60 digits; the tests measure the errors.
_LOG1P_22 = (
    1.0,
    -0.49999999999999833,
    0.3333333333330646,
    -0.2499999999826481,
    0.19999999940349814,
    -0.16666665403691092,
    0.14285696309567308,
    -0.12499817769513955,
    0.11109740896460193,
    -0.09992127821760016,
    0.09055567515590733,
    -0.08207163680437429,
    0.07329015255534954,
    -0.06288754670783146,
    0.05007742395391704,
    -0.03553052540144125,
    0.021511022653356974,
    -0.01061469636358553,
    0.004047809893467512,
    -0.0011093809681700342,
    0.00019330794553431145,
    -1.6020216725538194e-05,
)
_LOG1P_14 = (
    0.9999999999965526,
    -0.4999999986454919,
    0.33333324425176525,
    -0.24999766952241512,
    0.19996782322178103,
    -0.16639681062517256,
    0.14136394226230475,
    -0.11924821056785652,
    0.09509049761833763,
    -0.06673351301809682,
    0.03782205115422201,
    -0.01566061972113594,
    0.0041139143025147725,
    -0.0005074701491635587,
)

EXPANSIONS: Mapping[str, Expansion] = MappingProxyType(
    {
        "elu_plus_one": Expansion(below=(1.0,), intercept=1.0),
        "elu": Expansion(below=(1.0,), intercept=1.0, offset=-1.0),
        "softplus": Expansion(below=_LOG1P_22, above=_LOG1P_22),
    }
)
"""Exact for ``elu_plus_one`` and ``elu``; for ``softplus`` the relative error is below 1e-17, that of the first
derivative 1e-15 and of the second 1e-12."""

_SINGLE_SOFTPLUS = Expansion(below=_LOG1P_14, above=_LOG1P_14)


def expansion(phi: str, dtype: torch.dtype) -> Expansion:
    """Return the terms that are exact to a dtype: for ``softplus``, float32 needs 14 of them and float64 needs 22."""
    if phi == "softplus" and dtype != torch.float64:
        return _SINGLE_SOFTPLUS
    return EXPANSIONS[phi]
