r"""The certificate: an upper bound of the Lipschitz constant of attention on a ball.

Tokens lie in the ball of radius :math:`\rho`. With :math:`c_F = \|W_F\|_2`,
:math:`\mu_F = c_F \rho + \|b_F\|`, slopes :math:`\ell_q \ge \sup\|\partial\sigma_{ij}/\partial x_i\|`,
:math:`\ell_k \ge \sup\|\partial\sigma_{ij}/\partial x_j\|` and :math:`M = e^{\text{range of }\sigma}`,

.. math::
    \text{column:}\quad & L \le \sqrt M\,[c_F + \mu_F(\sqrt M\,\ell_q + \ell_k)] \\
    \text{row:}\quad    & L \le \sqrt M\,c_F + c_F\rho\,(\ell_q + \sqrt M\,\ell_k) \\
    \text{all:}\quad    & L \le \tfrac{M}{N}\,[c_F + \mu_F(\ell_q + \ell_k)]

in the Euclidean norm on :math:`\mathbb R^{N \times C}`. The first two do not depend on the number of tokens.

*Proof (column).* :math:`\delta A = R\,\delta F + (\delta R) F`. Since :math:`R_{ij} \le M/N` and columns sum to
1, row sums are at most :math:`M` and :math:`\|R\|_2 \le \sqrt{\|R\|_1\|R\|_\infty} \le \sqrt M`. Further
:math:`\delta R_{ij} = R_{ij}(\delta\sigma_{ij} - \sum_{i'} R_{i'j}\delta\sigma_{i'j})`; by Cauchy–Schwarz with the
weights :math:`R_{ij}`, :math:`\|(\delta R)F\| \le \mu_F\sqrt M\,(\sum_{ij}R_{ij}\delta\sigma_{ij}^2)^{1/2}`
(centring only shrinks it), and the two parts of :math:`\delta\sigma` give
:math:`\sqrt M\,\ell_q\|\delta x\|` and :math:`\ell_k\|\delta x\|`. The other two are the same argument. ∎

All bounds are returned as logarithms: :math:`M` is an exponential and would overflow long before its logarithm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["ScoreBounds", "attention_log_bound", "combine_heads", "log_rounding_allowance"]

Normalization = Literal["column", "row", "all"]


@dataclass(frozen=True)
class ScoreBounds:
    r"""What the certificate needs to know of a response on the ball, one entry per head.

    Attributes:
        query_slope: :math:`\ell_q`, shape ``(heads,)``.
        key_slope: :math:`\ell_k`, shape ``(heads,)``.
        log_range: :math:`\log M`, shape ``(heads,)``, for the normalisation that was asked for.
    """

    query_slope: Float[Tensor, " heads"]
    key_slope: Float[Tensor, " heads"]
    log_range: Float[Tensor, " heads"]


def attention_log_bound(
    scores: ScoreBounds,
    value_norm: Float[Tensor, " heads"],
    value_bias_norm: Float[Tensor, " heads"],
    radius: Float[Tensor, ""],
    normalization: Normalization,
) -> Float[Tensor, " heads"]:
    r"""Logarithm of the bound per head; for ``"all"`` without the factor :math:`1/N`.

    Args:
        scores: Slopes and range of the response on the ball.
        value_norm: :math:`c_F`, an upper bound of the spectral norm of :math:`W_F`.
        value_bias_norm: :math:`\|b_F\|` (drops out for ``"row"``, whose weights sum to 1).
        radius: :math:`\rho`.
        normalization: Along which the weights are normalised.
    """
    # An absolute error of log M is a relative one of M: it grows with log M and is allowed for here.
    log_range = scores.log_range * (1 + 64 * torch.finfo(scores.log_range.dtype).eps)
    half = log_range / 2
    root = torch.exp(-half)
    reach = value_norm * radius
    # √M is factored out, so that what is left stays finite for every range.
    if normalization == "column":
        reach = reach + value_bias_norm
        log_inner = _log(value_norm * root + reach * (scores.query_slope + root * scores.key_slope)) + half
        return half + log_inner
    if normalization == "row":
        return half + _log(value_norm + reach * (root * scores.query_slope + scores.key_slope))
    reach = reach + value_bias_norm
    return log_range + _log(value_norm + reach * (scores.query_slope + scores.key_slope))


def combine_heads(log_bounds: Float[Tensor, " heads"]) -> Float[Tensor, ""]:
    r"""Concatenated heads: :math:`L \le (\sum_h L_h^2)^{1/2}`, in logarithms."""
    return torch.logsumexp(2 * log_bounds, dim=0) / 2


def log_rounding_allowance(dtype: torch.dtype) -> float:
    """What the logarithm of a bound is raised by so that its own rounding cannot bring it below the truth.

    A few dozen operations with relative error ε each; 256 ε is 3e-5 in float32 and 6e-14 in float64.
    """
    return math.log1p(256 * torch.finfo(dtype).eps)


def _log(x: Tensor) -> Tensor:
    return torch.log(x.clamp_min(torch.finfo(x.dtype).tiny))
