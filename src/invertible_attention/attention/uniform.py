"""What attention computes where all weights are equal, or as the prior has them: affine in what it sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear

from invertible_attention.attention.ball import Projection, project_on_ball
from invertible_attention.attention.context import ContextTerms
from invertible_attention.attention.mask import AttentionMask
from invertible_attention.attention.mean_field import LinearPart

__all__ = ["Uniform"]


@dataclass(frozen=True)
class Uniform:
    r"""A branch with uniform weights, at tokens :math:`x`.

    Attributes:
        out_weight: :math:`W_L`.
        out_bias: :math:`b_L`, or ``None``.
        value_weight: :math:`W_F` of all heads.
        value_bias: :math:`b_F`, or ``None``.
        heads: Number of heads.
        gain: What their product is scaled by, for all samples or one for each.
        radius: Of the ball tokens are projected on; ``None`` for no ball.
        kernel: The weights by relative position on the torus, for one head or all; ``None`` for an average.
        tokens: What is seen as values, before its projection.
        spatial: Size of the grid of tokens.
        seen: Which tokens see which, and how many there are.
        terms: What a context adds.
    """

    out_weight: Float[Tensor, "channels features"]
    out_bias: Float[Tensor, " channels"] | None
    value_weight: Float[Tensor, "features channels"]
    value_bias: Float[Tensor, " features"] | None
    heads: int
    gain: Float[Tensor, "*batch"]
    radius: Float[Tensor, ""] | None
    kernel: Float[Tensor, "#heads *spatial"] | None
    tokens: Float[Tensor, "batch tokens channels"]
    spatial: Sequence[int]
    seen: AttentionMask
    terms: ContextTerms

    def linear_part(self) -> LinearPart:
        """Return the derivative."""
        return self._part(None if self.radius is None else Projection.at(self.tokens.mT, self.radius))

    def value(self) -> Float[Tensor, "batch channels *spatial"]:
        """Return the value."""
        seen = self._project(self.tokens).mT.unflatten(2, tuple(self.spatial))
        constant = self._constant()
        value = self._part(None).apply(seen) + constant.reshape(*constant.shape, *[1] * len(self.spatial))
        return value if self.seen.mask is None else value * self.seen.mask.view(-1, 1, *self.spatial)

    def _project(self, tokens: Tensor) -> Tensor:
        return tokens if self.radius is None else project_on_ball(tokens, self.radius)

    def _part(self, projection: Projection | None) -> LinearPart:
        if self.kernel is None:
            return LinearPart.average(
                self.out_weight @ self.value_weight, self.gain, self.seen.mask, projection
            )
        kernel = self.kernel.to(self.tokens.dtype).expand(self.heads, *self.spatial)
        into = self.value_weight.unflatten(0, (self.heads, -1))
        onto = self.out_weight.unflatten(1, (self.heads, -1)).transpose(0, 1)
        return LinearPart.convolution(kernel, onto @ into, self.gain, projection)

    def _constant(self) -> Float[Tensor, "batch_or_one channels"]:
        """Return what does not depend on the tokens: biases, and what is seen of a context."""
        like, terms = self.tokens, self.terms

        def per_sample(number: Tensor | float) -> Float[Tensor, "batch_or_one 1"]:
            return torch.as_tensor(number, dtype=like.dtype, device=like.device).reshape(-1, 1)

        values = like.new_zeros(1, len(self.value_weight))
        if self.value_bias is not None:
            values = per_sample(self.seen.row_mass()) * self.value_bias.to(like.dtype)
        if terms.sources is not None:
            # A further token counts as much as one of the sample's own.
            sources = self._project(terms.sources)
            if self.seen.source_mask is not None:
                sources = sources.masked_fill(~self.seen.source_mask[..., None], 0.0)
            values = values + linear(sources.sum(1) / per_sample(self.seen.count()), self.value_weight)
        constant = self.gain.reshape(-1, 1) * linear(values, self.out_weight)
        constant = constant if self.out_bias is None else constant + self.out_bias.to(like.dtype)
        return constant if terms.out is None else constant + terms.out[:, 0]
