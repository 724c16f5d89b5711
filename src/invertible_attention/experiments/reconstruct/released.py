r"""The authors' released reconstruction code, as it is, reimplemented from its mathematics.

It departs from the paper (Zha et al., 2021, https://github.com/Schwartz-Zha/InvertibleAttention):

- token :math:`j` receives :math:`\tfrac23 \sum_i w_{ij} F(x_i) / \sum_i w_{ij}`: ordinary attention with
  queries and keys exchanged, its rows summing to 2/3 (a factor of 1.5 the paper does not mention), where the
  paper normalizes columns to 1;
- :math:`\varphi` is ELU, which is negative below zero, so the weights of Dot-product and Concatenation have
  mixed signs and their sums can come close to zero;
- the embeddings are constrained like :math:`F` and :math:`W_L`, to 0.9, and Dot-product's :math:`F` to 0.5,
  by five steps of power iteration: a lower estimate of the norm, so a little more than that gets through;
- the Gaussian has a scalar gate :math:`\tanh(\gamma)`, zero at the start, in place of :math:`W_L`;
- the inverse is 50 fixed-point steps where the paper has 100, and nothing checks it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...attention.functional import attend
from ...bijection import refuse_unused
from ...lipschitz import constrain_by_estimate
from ...lipschitz.bind import bind
from ...residual import Residual
from ...solvers import FixedPoint, Solution

__all__ = ["ReleasedAttention", "ReleasedBranch", "SignedWeights"]

ROW_SUM = 2 / 3
INVERSE_STEPS = 50
COEFFICIENT = 0.9
DOT_PRODUCT_VALUE_COEFFICIENT = 0.5
POWER_ITERATIONS = 5
REDUCTION = 4

Tokens = Float[Tensor, "batch tokens features"]


class SignedWeights(NamedTuple):
    """Attention weights before normalization, and what they are divided by."""

    weights: Float[Tensor, "batch tokens tokens"]
    denominators: Float[Tensor, "batch tokens"]


class ReleasedBranch(nn.Module):
    """The residual branch of the authors' released code, for any of the four responses.

    Args:
        channels: number of channels.
        response: ``"gaussian"``, ``"embedded_gaussian"``, ``"dot_product"`` or ``"concatenation"``.

    Raises:
        ValueError: for another response.
    """

    def __init__(self, channels: int, response: str):
        super().__init__()
        known = ("gaussian", "embedded_gaussian", "dot_product", "concatenation")
        if response not in known:
            raise ValueError(f"response must be one of {', '.join(known)}, got {response!r}")
        self.response = response
        embedding = channels // REDUCTION
        value_coefficient = DOT_PRODUCT_VALUE_COEFFICIENT if response == "dot_product" else COEFFICIENT
        self.value = _constrained(channels, channels, value_coefficient)
        if response == "gaussian":
            self.gate = nn.Parameter(torch.zeros(()))
        else:
            self.query = _constrained(channels, embedding)
            self.key = _constrained(channels, embedding)
            self.out = _constrained(channels, channels)
        if response == "concatenation":
            self.join = _constrained(2 * embedding, 1, bias=False)

    def forward(
        self, x: Float[Tensor, "batch channels *spatial"]
    ) -> Float[Tensor, "batch channels *spatial"]:
        """Return ``g(x)``."""
        tokens = x.flatten(2).mT
        sending, receiving = self.scored(tokens)
        # Token j receives from all i, in ordinary attention's roles: what sends is the key.
        received = ROW_SUM * attend(
            receiving[:, None],
            sending[:, None],
            self.value(tokens)[:, None],
            combine=self.combine,
            phi=self.phi,
            normalization="row",
        ).squeeze(1)
        out = self.gate.tanh() * received if self.response == "gaussian" else self.out(received)
        return out.mT.reshape(x.shape)

    @property
    def combine(self) -> str:
        """How scores arise from what :meth:`scored` returns: a product or a sum."""
        return "sum" if self.response == "concatenation" else "product"

    @property
    def phi(self) -> str:
        """What turns scores into weights: the exponential or ELU."""
        return "exp" if self.response in ("gaussian", "embedded_gaussian") else "elu"

    def scored(self, tokens: Tokens) -> tuple[Tokens, Tokens]:
        """Return what scores are made of, for the sending token ``i`` and for the receiving token ``j``."""
        if self.response == "gaussian":
            return tokens, tokens
        query, key = self.query(tokens), self.key(tokens)
        if self.response == "concatenation":
            of_query, of_key = self.join.weight.mT.chunk(2)
            query, key = query @ of_query, key @ of_key
        return query, key

    def signed_weights(self, tokens: Tokens) -> SignedWeights:
        """Return the N×N weights ``w_ij`` and their sums over ``i``, which nothing keeps from being zero."""
        sending, receiving = self.scored(tokens)
        scores = sending + receiving.mT if self.combine == "sum" else sending @ receiving.mT
        weights = scores.exp() if self.phi == "exp" else nn.functional.elu(scores)
        return SignedWeights(weights, weights.sum(1))

    def lipschitz_bound(self) -> Float[Tensor, ""]:
        """Return infinity: nothing is promised."""
        return torch.tensor(math.inf)


class ReleasedAttention(Residual):
    """The released block ``x + g(x)``, inverted by 50 fixed-point steps whatever happens.

    Args:
        channels: number of channels.
        response: as in :class:`ReleasedBranch`.
        tolerance: relative residual up to which the last iterate is called converged.

    Example:
        >>> layer = ReleasedAttention(12, "embedded_gaussian")
        >>> solution = layer.solve_inverse(layer(torch.randn(2, 12, 4, 4)))
        >>> solution.evaluations.tolist()
        [50, 50]
    """

    def __init__(self, channels: int, response: str, *, tolerance: float = 1e-6):
        super().__init__(ReleasedBranch(channels, response), solver=FixedPoint(INVERSE_STEPS))
        self.tolerance = tolerance

    @torch.no_grad()
    def solve_inverse(
        self, z: Tensor, *, context: Tensor | None = None, mask: Tensor | None = None
    ) -> Solution:
        """Return the last of 50 iterates, good or not; the library's solvers would return the best."""
        refuse_unused(self, context=context, mask=mask)
        branch, x = bind(self.branch), z
        for _ in range(INVERSE_STEPS):
            x = z - branch(x)
        error = (x + branch(x) - z).double().flatten(1).norm(dim=1)
        residual = error / (1 + z.double().flatten(1).norm(dim=1))
        steps = torch.full((len(z),), INVERSE_STEPS, device=z.device)
        return Solution(
            value=x,
            converged=residual <= self.tolerance,
            iterations=steps,
            evaluations=steps,
            residual=residual,
            error_bound=torch.full_like(residual, math.inf),
        )


def _constrained(
    inputs: int, outputs: int, coefficient: float = COEFFICIENT, *, bias: bool = True
) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=bias)
    constrain_by_estimate(layer, coefficient, n_power_iterations=POWER_ITERATIONS)
    return layer
