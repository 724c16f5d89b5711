r"""How attention is conditioned: a vector that shifts queries, keys, values and output, or tokens to attend to.

With :math:`\Pi_\rho` the projection on the ball, the branch given a **vector** :math:`c` sees

.. math:: \Pi_\rho(x_i + s_q(c)) \text{ as queries},\quad \Pi_\rho(x_j + s_k(c)) \text{ as keys},\quad
          \Pi_\rho(x_j + s_F(c)) \text{ as values,}

and its output is moved by :math:`s_L(c)`. Given **tokens** :math:`t_m(c)` it sees :math:`\Pi_\rho(t_m)` as further
keys and values. Both keep the certificate for every context
(:mod:`invertible_attention.lipschitz.certificate`); the first at no cost at all.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

__all__ = ["Context", "ContextKind", "ContextTerms", "ContextTokens", "ContextVector", "make_context"]

ContextKind = Literal["vector", "tokens", "masked_tokens"]


@dataclass(frozen=True)
class ContextTerms:
    """What a context adds to the terms of attention.

    Attributes:
        query: Added to tokens seen as queries, ``(batch, 1, channels)``.
        key: Added to tokens seen as keys.
        value: Added to tokens seen as values.
        out: Added to the output of the branch.
        sources: Further tokens, seen as keys and values, ``(batch, sources, channels)``.
        source_mask: True where such a token is valid; ``None`` if all are.
    """

    query: Float[Tensor, "batch 1 channels"] | None = None
    key: Float[Tensor, "batch 1 channels"] | None = None
    value: Float[Tensor, "batch 1 channels"] | None = None
    out: Float[Tensor, "batch 1 channels"] | None = None
    sources: Float[Tensor, "batch sources channels"] | None = None
    source_mask: Bool[Tensor, "batch sources"] | None = None


class Context(nn.Module, ABC):
    """Base class of conditioning, with a linear map of the context's features.

    Args:
        features: Number of features :math:`K` of a context.
        axes: Number of axes of a batch of contexts.
        expected: Its shape, in words.
    """

    def __init__(self, features: int, axes: int, expected: str) -> None:
        super().__init__()
        if features < 1:
            raise ValueError(f"context_channels must be at least 1, got {features}")
        self.features, self.axes, self.expected = features, axes, expected

    @abstractmethod
    def forward(self, context: Tensor, dtype: torch.dtype) -> ContextTerms:
        """Return what the context adds, in the given dtype."""

    @property
    def rows(self) -> int:
        """Length of a context's second axis."""
        return self.features

    def check(self, context: Tensor | None, batch: int) -> None:
        """Raise :class:`ValueError` for a context that is missing or of another shape."""
        if context is None:
            raise ValueError(f"this layer needs a context {self.expected}, got None")
        if context.ndim != self.axes or context.shape[:2] != (batch, self.rows):
            shape = self.expected.replace("B", str(batch), 1)
            raise ValueError(f"expected a context {shape}, got shape {tuple(context.shape)}")
        if not context.is_floating_point():
            raise ValueError(f"expected a floating-point context, got {context.dtype}: embed classes first")


class ContextVector(Context):
    r"""A vector per sample, mapped linearly to :math:`s_q, s_k, s_F, s_L`, which are zero at first.

    Args:
        features: Number of features :math:`K`.
        channels: Number of channels of the tokens.
    """

    def __init__(self, features: int, channels: int) -> None:
        super().__init__(features, 2, f"(B, {features})")
        self.weight = nn.Parameter(torch.zeros(4 * channels, features))

    def forward(self, context: Float[Tensor, "batch features"], dtype: torch.dtype) -> ContextTerms:
        """Return the four shifts."""
        shifts = nn.functional.linear(context.to(dtype), self.weight.to(dtype))
        return ContextTerms(*shifts.unflatten(1, (4, 1, -1)).unbind(1))


class ContextTokens(Context):
    """Tokens ``(B, K, M)`` per sample, any number of them, embedded linearly among the layer's own.

    Args:
        features: Number of features :math:`K`.
        channels: Number of channels of the tokens.
        masked: Whether samples have unequally many. Then contexts are ``(B, K + 1, M)``, and the last feature says
            which tokens are valid: 1 where they are, 0 where not. The others are not seen, whatever they contain.
    """

    def __init__(self, features: int, channels: int, masked: bool = False) -> None:
        super().__init__(features, 3, f"(B, {features + masked}, M)")
        self.masked = masked
        limit = 1 / math.sqrt(features)
        self.weight = nn.Parameter(torch.empty(channels, features).uniform_(-limit, limit))
        self.bias = nn.Parameter(torch.empty(channels).uniform_(-limit, limit))

    @property
    def rows(self) -> int:
        """Length of a context's second axis."""
        return self.features + self.masked

    def forward(self, context: Float[Tensor, "batch rows sources"], dtype: torch.dtype) -> ContextTerms:
        """Return the embedded tokens."""
        mask = None
        if self.masked:
            mask = context[:, -1] > 0.5
            context = context[:, :-1].masked_fill(~mask[:, None], 0.0)
        embedded = nn.functional.linear(
            context.to(dtype).transpose(1, 2), self.weight.to(dtype), self.bias.to(dtype)
        )
        return ContextTerms(sources=embedded, source_mask=mask)


def make_context(kind: str, features: int | None, channels: int) -> Context | None:
    """Build the context module of a layer; ``None`` for a layer without a context.

    Raises:
        ValueError: If the kind is unknown or the number of features not positive.
    """
    if kind not in get_args(ContextKind):
        raise ValueError(f"context_kind must be one of {get_args(ContextKind)}, got {kind!r}")
    if features is None:
        return None
    if kind == "vector":
        return ContextVector(features, channels)
    return ContextTokens(features, channels, masked=kind == "masked_tokens")
