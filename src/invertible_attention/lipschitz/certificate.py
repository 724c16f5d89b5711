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

**Roles.** Each token enters three times, as query, key and value. The proof uses of what a role sees,
:math:`\hat x_i`, only that it lies in the ball and that :math:`\|\delta\hat x_i\| \le \|\delta x_i\|`. So the roles may
see different things, and :math:`\hat x_i = \Pi_\rho(x_i + s(c))` with any shift :math:`s(c)` per role will do, because
moving and projecting are both 1-Lipschitz: conditioning on a vector leaves the bounds as they are, for every context.

**Sources.** Let there be :math:`m` further keys with values in the ball that do not depend on :math:`x` (context
tokens), and :math:`r = 1 + m/N`. They add terms to the sums over :math:`j` but none to :math:`\delta F`, nor to the
part of :math:`\delta\sigma` that belongs to keys. With row normalization rows still sum to 1, and with "all" row sums
are still at most :math:`M/N`: their bounds hold as they are. With column normalization each column still spreads one
unit over the :math:`N` queries, so row sums are at most :math:`rM`, and

.. math:: \text{column, sources:}\quad L \le \sqrt M\,c_F + \mu_F(r M\,\ell_q + \sqrt{r M}\,\ell_k).

**Causal order** (:math:`R_{ij} = 0` for :math:`j > i`), row normalization:

.. math:: \text{row, causal:}\quad L \le 2M^{3/4}\,(c_F + 2 c_F\rho\,\ell_k) + c_F\rho\,\ell_q .

*Proof.* Now :math:`R_{ij} \le M/i`. With :math:`p_i = \Gamma(i+1)/\Gamma(i+\tfrac32)` and
:math:`q_j = \Gamma(j)/\Gamma(j+\tfrac12)`: :math:`\sum_{i \ge j} p_i/i = 2 q_j` (it telescopes), so
:math:`\sum_i R_{ij} p_i \le 2M q_j`. Since :math:`q` decreases, :math:`\sum_j R_{ij} q_j` is largest with all of the
row's unit on the first :math:`i/M` tokens; :math:`\sum_{j \le k} q_j = 2(\Gamma(k+1)/\Gamma(k+\tfrac12) -
\pi^{-1/2}) \le 2(\sqrt{k + 1/\pi} - \sqrt{1/\pi})` and :math:`p_i \ge (i + \tfrac12 + 1/\pi)^{-1/2}` then give
:math:`\sum_j R_{ij} q_j \le 2\sqrt M\,p_i`. Schur's test: :math:`\|R\|_2 \le 2M^{3/4}` (for :math:`M = 1` this is
Hardy's inequality, and sharp). The rest is :math:`\sum_j R_{ij}\delta\sigma_{ij}(F_j - \bar F_i)` with
:math:`\bar F_i = \sum_j R_{ij}F_j`: the query part is at most :math:`c_F\rho\,\ell_q\|\delta x_i\|`, the key part at
most :math:`2 c_F\rho\,\ell_k \sum_j R_{ij}\|\delta x_j\|`. ∎

With "all", causal order leaves :math:`N(N+1)/2` pairs: the bound is that above with :math:`(N+1)/2` for :math:`N`. With
column normalization **no bound without** :math:`N` **exists**: the last token gets the share :math:`1/(N-j+1)` of every
column :math:`j` even if all weights are equal, and moving it alone moves its own output by
:math:`\mu_F\ell_q \sum_k (k^{-1} - k^{-2}) \approx \mu_F\ell_q \ln N` times as far.

**Prior.** Let :math:`R_{ij} \propto \pi_{ij} e^{\sigma_{ij}}` with weights :math:`\pi_{ij} \ge 0` that do not depend on
:math:`x`. Normalized as :math:`R` is, to :math:`\tilde\pi`, they give :math:`R_{ij} \le M \tilde\pi_{ij}`. Let
:math:`r` be the largest row sum of :math:`\tilde\pi` over all keys, :math:`t` over those that are tokens, and :math:`s`
the largest sum of a token's column. These take the place of the :math:`1/N` that were summed above:

.. math::
    \text{column:}\quad & L \le \sqrt{tM}\,c_F + \mu_F(r M\,\ell_q + \sqrt{r M}\,\ell_k) \\
    \text{row:}\quad    & L \le \sqrt{sM}\,c_F + c_F\rho\,(\ell_q + \sqrt{sM}\,\ell_k)

and with "all", :math:`\max(r, s)`, which then are sums of :math:`\pi / \sum_{ij} \pi_{ij}`, replaces :math:`1/N`. A
doubly stochastic :math:`\pi` has :math:`r = t = s = 1`: the bounds are those above. Where some pairs are not seen,
because of padding, causal order or further sources, the sums are computed from :math:`\pi`; this holds in causal order
too, as a bound that depends on :math:`N` through them.

**Padding.** Tokens that are neither queries nor keys are not there: :math:`N` is the number of valid ones.

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
        log_range: :math:`\log M`, shape ``(heads,)``, for the normalization that was asked for.
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
    *,
    row_mass: Tensor | float = 1.0,
    spread: Tensor | float = 1.0,
    causal: bool = False,
) -> Float[Tensor, "*batch heads"]:
    r"""Logarithm of the bound per head; for ``"all"`` without the factor :math:`1/N`.

    Args:
        scores: Slopes and range of the response on the ball.
        value_norm: :math:`c_F`, an upper bound of the spectral norm of :math:`W_F`.
        value_bias_norm: :math:`\|b_F\|` (drops out for ``"row"``, whose weights sum to 1).
        radius: :math:`\rho`.
        normalization: Along which the weights are normalized.
        row_mass: :math:`r`, the number of keys for each query, where it is above 1; ``(batch, 1)`` or a number. With
            a prior the largest sum of a row, ``(batch, heads)``.
        spread: With a prior :math:`t` for ``"column"``, :math:`s` for ``"row"``.
        causal: Whether a token attends to itself and those before it only.

    Raises:
        ValueError: For a causal column normalization, which has no bound without :math:`N`.
    """
    if causal and normalization == "column":
        raise ValueError(
            "no bound without the number of tokens exists for normalization='column' and causal=True"
        )
    # An absolute error of log M is a relative one of M: it grows with log M and is allowed for here.
    log_range = scores.log_range * (1 + 64 * torch.finfo(scores.log_range.dtype).eps)
    half = log_range / 2
    root = torch.exp(-half)
    reach = value_norm * radius
    # √M is factored out, so that what is left stays finite for every range.
    if normalization == "column":
        reach = reach + value_bias_norm
        from_keys = root * scores.key_slope * row_mass**0.5
        from_values = value_norm * root * spread**0.5
        return log_range + _log(from_values + reach * (scores.query_slope * row_mass + from_keys))
    if normalization == "row" and causal:
        log_norm = math.log(2) + 0.75 * log_range
        from_queries = torch.exp(-log_norm) * scores.query_slope
        return log_norm + _log(value_norm + reach * (2 * scores.key_slope + from_queries))
    if normalization == "row":
        from_queries = root * scores.query_slope / spread**0.5
        log_norm = half + (spread.log() / 2 if isinstance(spread, Tensor) else math.log(spread) / 2)
        return log_norm + _log(value_norm + reach * (from_queries + scores.key_slope))
    reach = reach + value_bias_norm
    return log_range + _log(value_norm + reach * (scores.query_slope + scores.key_slope))


def combine_heads(log_bounds: Float[Tensor, "*batch heads"]) -> Float[Tensor, "*batch"]:
    r"""Concatenated heads: :math:`L \le (\sum_h L_h^2)^{1/2}`, in logarithms."""
    return torch.logsumexp(2 * log_bounds, dim=-1) / 2


def log_rounding_allowance(dtype: torch.dtype) -> float:
    """What the logarithm of a bound is raised by so that its own rounding cannot bring it below the truth.

    A few dozen operations with relative error ε each; 256 ε is 3e-5 in float32 and 6e-14 in float64.
    """
    return math.log1p(256 * torch.finfo(dtype).eps)


def _log(x: Tensor) -> Tensor:
    return torch.log(x.clamp_min(torch.finfo(x.dtype).tiny))
