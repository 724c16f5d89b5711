"""Which pairs of tokens see each other: padding, causal order, and further tokens that are only seen."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["Visibility"]


@dataclass(frozen=True)
class Visibility:
    """Who attends to whom among ``tokens`` queries and as many keys, followed by ``sources`` more keys.

    Args:
        tokens: Number of tokens of a sample.
        sources: Number of further keys, which every token sees.
        causal: Whether a token sees only itself and those before it.
        mask: True where a token is valid; ``None`` if all are.
    """

    tokens: int
    sources: int = 0
    causal: bool = False
    mask: Bool[Tensor, "batch tokens"] | None = None

    @property
    def square(self) -> bool:
        """Whether the further keys have to become queries too, so that one mask serves both sides."""
        return self.mask is not None and self.sources > 0

    def log_prior(self, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "queries keys"] | None:
        """Return zero where a pair may see each other and minus infinity where not; ``None`` if all may."""
        if not self.causal and not self.square:
            return None
        queries = self.tokens + self.sources if self.square else self.tokens
        seen = torch.ones(queries, self.tokens + self.sources, dtype=torch.bool, device=device)
        if self.causal:
            seen[: self.tokens, : self.tokens].tril_()
        seen[self.tokens :] = False
        return torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill(~seen, -torch.inf)

    def key_mask(self) -> Bool[Tensor, "batch keys"] | None:
        """Return the mask of the keys, the further ones valid."""
        if self.mask is None or not self.sources:
            return self.mask
        return torch.cat([self.mask, self.mask.new_ones(self.mask.shape[0], self.sources)], 1)

    def log_count(self) -> Tensor | float:
        r"""Logarithm of :math:`N`, or of :math:`(N+1)/2` in causal order, per sample where there is a mask."""
        if self.mask is None:
            return math.log((self.tokens + 1) / 2 if self.causal else self.tokens)
        count = self._valid()
        return ((count + 1) / 2 if self.causal else count).log()

    def crowding(self) -> Float[Tensor, " batch"] | float:
        """Number of keys for each query, ``1 + sources / tokens``, per sample where there is a mask."""
        return 1 + self.sources / (self.tokens if self.mask is None else self._valid())

    def _valid(self) -> Float[Tensor, " batch"]:
        assert self.mask is not None
        return self.mask.sum(1).clamp_min(1).to(torch.get_default_dtype())
