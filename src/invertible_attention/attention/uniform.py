"""Attention where all weights are equal, or as a prior has them, which is affine; and how they follow their queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import linear

from invertible_attention.attention.ball import Projection, project_on_ball
from invertible_attention.attention.bases import Mean
from invertible_attention.attention.context import ContextTerms
from invertible_attention.attention.mask import AttentionMask
from invertible_attention.attention.mean_field import LinearPart, MeanWithQueries
from invertible_attention.attention.queries import query_effect
from invertible_attention.attention.responses import Response

__all__ = ["Uniform"]


class _Role(NamedTuple):
    """What a role sees, and the projection on the ball it comes from, ``None`` where that is known to move nothing."""

    tokens: Float[Tensor, "batch channels tokens"]
    projection: Projection | None


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
        tokens: What is seen, before it is moved for its role and projected.
        spatial: Size of the grid of tokens.
        seen: Which tokens see which, and how many there are.
        terms: What a context adds.
        response: Scores pairs of tokens; ``None`` if weights are not to follow queries.
        normalization: What weights sum to one along.
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
    response: Response | None
    normalization: str

    def linear_part(self) -> LinearPart:
        """Return the derivative, that of the weights by their queries included where there is a response."""
        part = self._part(self._values.projection)
        if self._query_factors is None:
            return part
        assert isinstance(part.basis, Mean)
        (left, right), count = self._query_factors, self.seen.count()
        if self._queries.projection is not None:
            same = self._queries is self._values
            basis = part.basis if same else Mean(self.seen.mask, self._queries.projection)
            right = right @ basis.slope
        count = count.to(left.dtype) if isinstance(count, Tensor) else count
        return MeanWithQueries(part.basis, part.matrices, left, right, count)

    def value(self) -> Float[Tensor, "batch channels *spatial"]:
        """Return the value, to first order in what the weights make of their queries where there is a response."""
        tokens, constant = self._values.tokens, self._constant()[..., None]
        value = self._part(None).apply(tokens.unflatten(2, tuple(self.spatial))).flatten(2) + constant
        if self._query_factors is not None:
            left, right = self._query_factors
            value = value + left @ (right @ Mean(self.seen.mask).center(self._queries.tokens))
        if self.seen.mask is not None:
            value = value * self.seen.mask[:, None]
        return value.unflatten(2, tuple(self.spatial))

    @cached_property
    def _query_factors(
        self,
    ) -> tuple[Float[Tensor, "batch channels rank"], Float[Tensor, "rank channels"]] | None:
        """Factors of what moving a token on the ball adds to the output there, as weights follow their query."""
        if self.response is None:
            return None
        bias = None
        if self.value_bias is not None:
            bias = self.value_bias.to(self.tokens.dtype).unflatten(0, (self.heads, -1))
            bias = (self._onto @ bias[..., None])[..., 0]
        factors = query_effect(
            self.response,
            self._queries.tokens,
            self._with_sources(self._keys.tokens),
            self._with_sources(self._values.tokens),
            weight=self._weights,
            bias=bias,
            normalization=self.normalization,
            seen=self.seen,
        )
        return None if factors is None else (self.gain.reshape(-1, 1, 1) * factors[0], factors[1])

    def _with_sources(self, tokens: Tensor) -> Float[Tensor, "batch channels keys"]:
        return tokens if self._sources is None else torch.cat([tokens, self._sources.mT], 2)

    @cached_property
    def _sources(self) -> Float[Tensor, "batch sources channels"] | None:
        sources = self.terms.sources
        return sources if sources is None or self.radius is None else project_on_ball(sources, self.radius)

    @cached_property
    def _queries(self) -> _Role:
        return self._role(self.terms.query)

    @cached_property
    def _keys(self) -> _Role:
        return self._role(self.terms.key)

    @cached_property
    def _values(self) -> _Role:
        return self._role(self.terms.value)

    @cached_property
    def _unshifted(self) -> _Role:
        return self._project(self.tokens)

    def _role(self, shift: Tensor | None) -> _Role:
        return self._unshifted if shift is None else self._project(self.tokens + shift)

    def _project(self, tokens: Tensor) -> _Role:
        projection = None if self.radius is None else Projection.at(tokens.mT, self.radius)
        if projection is None or projection.moves_nothing:
            return _Role(tokens.mT, None)
        return _Role(projection.value, projection)

    @property
    def _onto(self) -> Float[Tensor, "heads channels features"]:
        return self.out_weight.unflatten(1, (self.heads, -1)).transpose(0, 1)

    @property
    def _weights(self) -> Float[Tensor, "heads channels channels"]:
        """:math:`W_L W_F` of every head."""
        return self._onto @ self.value_weight.unflatten(0, (self.heads, -1))

    def _part(self, projection: Projection | None) -> LinearPart:
        if self.kernel is None:
            return LinearPart.average(
                self.out_weight @ self.value_weight, self.gain, self.seen.mask, projection
            )
        kernel = self.kernel.to(self.tokens.dtype).expand(self.heads, *self.spatial)
        return LinearPart.convolution(kernel, self._weights, self.gain, projection)

    def _constant(self) -> Float[Tensor, "batch_or_one channels"]:
        """Return what does not depend on the tokens: biases, and what is seen of a context."""
        like, terms = self.tokens, self.terms

        def per_sample(number: Tensor | float) -> Float[Tensor, "batch_or_one 1"]:
            return torch.as_tensor(number, dtype=like.dtype, device=like.device).reshape(-1, 1)

        values = like.new_zeros(1, len(self.value_weight))
        if self.value_bias is not None:
            values = per_sample(self.seen.row_mass()) * self.value_bias.to(like.dtype)
        if self._sources is not None:
            # A further token counts as much as one of the sample's own.
            sources = self._sources
            if self.seen.source_mask is not None:
                sources = sources.masked_fill(~self.seen.source_mask[..., None], 0.0)
            values = values + linear(sources.sum(1) / per_sample(self.seen.count()), self.value_weight)
        constant = self.gain.reshape(-1, 1) * linear(values, self.out_weight)
        constant = constant if self.out_bias is None else constant + self.out_bias.to(like.dtype)
        return constant if terms.out is None else constant + terms.out[:, 0]
