"""Attention masks: padding, causal order, and context tokens that are keys only."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from invertible_attention._precision import accurate

__all__ = ["AttentionMask", "Spread"]

# Far above the smallest float32: smaller terms do not matter.
_SMALLEST_SUM = 1e-30


@dataclass(frozen=True)
class Spread:
    """Sums of a partly masked prior that the certificate depends on, per sample and head.

    Attributes:
        row_mass: Largest sum of a row over all keys; see :func:`.certificate.attention_log_bound`.
        spread: Largest sum of a row (``"column"``) or of a column (``"row"``) over the tokens.
        log_count: For ``"all"``, the logarithm of what the number of tokens is without a prior.
    """

    row_mass: Tensor | float = 1.0
    spread: Tensor | float = 1.0
    log_count: Tensor | float = 0.0


@dataclass(frozen=True)
class AttentionMask:
    """Which of ``tokens`` queries attend to which of as many keys, followed by ``sources`` more keys.

    Args:
        tokens: Number of tokens of a sample.
        sources: Number of further keys, which every token sees.
        causal: Whether a token sees only itself and those before it.
        mask: True where a token is valid; ``None`` if all are.
        source_mask: True where a further key is valid; ``None`` if all are.
    """

    tokens: int
    sources: int = 0
    causal: bool = False
    mask: Bool[Tensor, "batch tokens"] | None = None
    source_mask: Bool[Tensor, "batch sources"] | None = None

    @property
    def complete(self) -> bool:
        """Whether all tokens see each other and nothing else."""
        return not self.causal and not self.sources and self.mask is None

    @property
    def square(self) -> bool:
        """Whether the further keys have to become queries too, so that one mask serves both sides."""
        return self.sources > 0 and (self.mask is not None or self.source_mask is not None)

    def log_prior(
        self,
        dtype: torch.dtype,
        device: torch.device,
        positions: Float[Tensor, "heads tokens tokens"] | None = None,
    ) -> Float[Tensor, "*heads queries keys"] | None:
        """Return the logarithm of the weight of each pair, minus infinity for those that may not see each other.

        Args:
            dtype: Its dtype.
            device: Its device.
            positions: Logarithm of a prior over pairs of tokens; a further key then weighs as much as tokens do on
                average. ``None`` if all weigh the same.

        Returns:
            The logarithms, or ``None`` if all are zero.
        """
        if not self.causal and not self.square and positions is None:
            return None
        queries = self.tokens + self.sources if self.square else self.tokens
        seen = torch.ones(queries, self.tokens + self.sources, dtype=torch.bool, device=device)
        if self.causal:
            seen[: self.tokens, : self.tokens].tril_()
        seen[self.tokens :] = False
        weights = torch.zeros(seen.shape, dtype=dtype, device=device)
        if positions is not None:
            more = (0, self.sources, 0, queries - self.tokens)
            weights = torch.nn.functional.pad(positions.to(dtype), more, value=-math.log(self.tokens))
        return weights.masked_fill(~seen, -torch.inf)

    def key_mask(self) -> Bool[Tensor, "batch keys"] | None:
        """Return the mask of all keys of :func:`.functional.attend`, which further keys are part of only if square."""
        return self.every_key_mask() if self.square else self.mask

    def every_key_mask(self) -> Bool[Tensor, "batch keys"] | None:
        """Return the mask of all keys, ``None`` if all are valid."""
        if self.mask is None and self.source_mask is None:
            return None
        masks = [self.mask, self.source_mask]
        batch = next(mask for mask in masks if mask is not None)
        sizes = (self.tokens, self.sources)
        return torch.cat(
            [
                batch.new_ones(batch.shape[0], size) if mask is None else mask
                for mask, size in zip(masks, sizes, strict=True)
            ],
            1,
        )

    def spread(self, log_prior: Float[Tensor, "heads queries keys"], normalization: str) -> Spread:
        """Return how unevenly a prior is seen, as upper bounds; ``(batch, heads)`` or ``(1, heads)`` each.

        Args:
            log_prior: What :meth:`log_prior` returned.
            normalization: Of the attention.
        """
        prior = log_prior[:, : self.tokens].exp()
        mask = self.key_mask()
        keys = prior.new_ones(1, prior.shape[-1]) if mask is None else mask.to(prior.dtype)
        queries = keys[:, : self.tokens]
        token = torch.arange(prior.shape[-1], device=prior.device) < self.tokens

        def rows(weight: Tensor) -> Tensor:
            return torch.einsum("hqk,bhk->bhq", prior, weight) * queries[:, None]

        def columns(weight: Tensor) -> Tensor:
            return torch.einsum("hqk,bhq->bhk", prior, weight) * keys[:, None]

        every_key, every_query = (
            keys[:, None].expand(-1, len(prior), -1),
            queries[:, None].expand(-1, len(prior), -1),
        )
        if normalization == "column":
            weight, lost = _inverse(columns(every_query), keys[:, None])
            row_mass = rows(weight).amax(-1) + lost.sum(-1)
            spread = rows(weight * token).amax(-1) + (lost * token).sum(-1)
            return Spread(row_mass.clamp_min(1.0), spread.clamp_min(1.0))
        if normalization == "row":
            weight, lost = _inverse(rows(every_key), queries[:, None])
            return Spread(spread=((columns(weight) * token).amax(-1) + lost.sum(-1)).clamp_min(1.0))
        sums = rows(every_key)
        largest = torch.maximum(sums.amax(-1), (columns(every_query) * token).amax(-1))
        tiny = torch.finfo(prior.dtype).tiny
        return Spread(log_count=sums.sum(-1).clamp_min(tiny).log() - largest.clamp_min(tiny).log())

    def log_count(self) -> Tensor | float:
        r"""Logarithm of :math:`N`, or of :math:`(N+1)/2` in causal order, per sample where there is a mask."""
        count = self.count()
        count = (count + 1) / 2 if self.causal else count
        return count.log() if isinstance(count, Tensor) else math.log(count)

    def row_mass(self) -> Float[Tensor, " batch"] | float:
        """Number of keys for each query, ``1 + sources / tokens``, per sample where there is a mask."""
        sources = self.sources
        if self.source_mask is not None:
            sources = _count(self.source_mask)
        return 1 + sources / self.count()

    def count(self) -> Float[Tensor, " batch"] | int:
        """Number of valid tokens, at least 1, per sample where there is a mask."""
        return self.tokens if self.mask is None else _count(self.mask).clamp_min(1)


def _inverse(
    sums: Float[Tensor, "batch heads items"], valid: Float[Tensor, "batch 1 items"]
) -> tuple[Tensor, Tensor]:
    """Return one over the sums where they are not too small for it, and where they are (among the valid)."""
    # Of what is lost nothing is known but that, normalized, it adds at most one to any sum.
    large = sums > _SMALLEST_SUM
    return torch.where(large, valid / sums.clamp_min(_SMALLEST_SUM), 0.0), valid * ~large


def _count(mask: Bool[Tensor, "batch items"]) -> Float[Tensor, " batch"]:
    # Wide, because it enters the bound of branches in any precision.
    return accurate(mask.sum(1))
