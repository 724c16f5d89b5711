"""Vectors over tokens that the linear part of attention maps to multiples of themselves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from invertible_attention.attention.ball import Projection

__all__ = ["Basis", "Fourier", "Image", "Mean"]

Image = Float[Tensor, "batch channels *spatial"]


class Basis(ABC):
    """Vectors over tokens that a linear part maps to multiples of themselves, with a matrix for factor."""

    @abstractmethod
    def analyze(self, v: Image, transposed: bool) -> Tensor:
        """Return the coefficients of ``v``, ``(batch, components, channels)``: ``A v``, or ``Sᵀ v`` up to a factor."""

    @abstractmethod
    def synthesize(self, coefficients: Tensor, like: Image, transposed: bool) -> Image:
        """Return ``S c``, or ``Aᵀ c`` up to a factor, of the shape of ``like``."""

    @abstractmethod
    def gram(self, like: Tensor) -> Tensor:
        """Return ``A S``, one matrix per component."""

    @abstractmethod
    def multiplicity(self, like: Tensor) -> Float[Tensor, "batch_or_one components"]:
        """Return how many vectors share each component's matrix."""

    @abstractmethod
    def select(self, samples: Int[Tensor, " rows"]) -> Self:
        """Return the basis of some of the samples."""


@dataclass(frozen=True)
class Mean(Basis):
    """The one vector that is constant over (valid) tokens.

    Args:
        mask: True where a token is valid, ``(batch, tokens)``; ``None`` if all are.
        projection: What tokens go through before they are averaged; ``None`` for nothing.
    """

    mask: Bool[Tensor, "batch tokens"] | None = None
    projection: Projection | None = None

    def analyze(self, v: Image, transposed: bool) -> Tensor:
        """Average over the valid tokens."""
        tokens = v.flatten(2)
        if self.projection is not None and not transposed:
            tokens = self.projection.apply(tokens)
        return self._mean(tokens)[:, None]

    def synthesize(self, coefficients: Tensor, like: Image, transposed: bool) -> Image:
        """Give every valid token the mean, and zero to the others."""
        tokens = coefficients.mT.expand(-1, -1, like.shape[2:].numel())
        if self.projection is not None and transposed:
            tokens = self.projection.apply(tokens)
        if self.mask is not None:
            tokens = tokens * self.mask[:, None]
        return tokens.reshape(like.shape)

    def gram(self, like: Tensor) -> Tensor:
        """Return the mean of the projection's derivative."""
        if self.projection is None:
            return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)
        return self.slope[:, None]

    def multiplicity(self, like: Tensor) -> Float[Tensor, "batch_or_one components"]:
        """One, where there is a valid token."""
        return like.new_ones(1, 1) if self.mask is None else self.mask.any(1, keepdim=True).to(like.dtype)

    def select(self, samples: Int[Tensor, " rows"]) -> Mean:
        """Select masks and projections."""
        return Mean(
            None if self.mask is None else self.mask[samples],
            None if self.projection is None else self.projection.select(samples),
        )

    @cached_property
    def slope(self) -> Float[Tensor, "batch channels channels"]:
        """The mean of the projection's derivative."""
        assert self.projection is not None
        return self.projection.average(self.mask)

    def center(self, v: Image) -> Image:
        """Take the mean of the valid tokens from each of them; the others become zero."""
        tokens = v.flatten(2)
        tokens = tokens - self._mean(tokens)[..., None]
        return (tokens if self.mask is None else tokens * self.mask[:, None]).reshape(v.shape)

    def _mean(self, values: Float[Tensor, "batch rows tokens"]) -> Float[Tensor, "batch rows"]:
        if self.mask is None:
            return values.mean(2)
        count = self.mask.sum(1, keepdim=True).clamp_min(1)
        return values.masked_fill(~self.mask[:, None], 0.0).sum(2) / count


@dataclass(frozen=True)
class Fourier(Basis):
    """Waves on the torus of positions; of each pair of conjugate ones only one is kept.

    Args:
        spatial: Size of the grid.
        before: A symmetric map of the channels of every token that comes first; ``None`` for nothing.
    """

    spatial: tuple[int, ...]
    before: Float[Tensor, "batch channels channels"] | None = None

    def analyze(self, v: Image, transposed: bool) -> Tensor:
        """Transform."""
        return torch.fft.rfftn(v if transposed else self._mapped(v), dim=self._axes).flatten(2).mT

    def synthesize(self, coefficients: Tensor, like: Image, transposed: bool) -> Image:
        """Transform back."""
        shape = (*like.shape[:2], *self.spatial[:-1], self.spatial[-1] // 2 + 1)
        image = torch.fft.irfftn(coefficients.mT.reshape(shape), s=self.spatial, dim=self._axes)
        return self._mapped(image) if transposed else image

    def gram(self, like: Tensor) -> Tensor:
        """Return the map that comes first: waves are orthogonal."""
        if self.before is None:
            return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)
        return self.before[:, None].to(like.dtype)

    def multiplicity(self, like: Tensor) -> Float[Tensor, "batch_or_one components"]:
        """Two for waves that stand for a conjugate pair."""
        size = self.spatial[-1]
        counts = like.new_full((size // 2 + 1,), 2.0)
        counts[0] = 1.0
        if size % 2 == 0:
            counts[-1] = 1.0
        return counts.expand(*self.spatial[:-1], -1).reshape(1, -1)

    def select(self, samples: Int[Tensor, " rows"]) -> Fourier:
        """Select what comes first."""
        return Fourier(self.spatial, None if self.before is None else self.before[samples])

    def transfer(self, kernel: Float[Tensor, "heads *spatial"]) -> Tensor:
        """Return the factor of each component under the convolution with ``kernel``, ``(heads, components)``."""
        return torch.fft.rfftn(kernel, dim=self._axes).flatten(1)

    def _mapped(self, v: Image) -> Image:
        return v if self.before is None else (self.before @ v.flatten(2)).reshape(v.shape)

    @property
    def _axes(self) -> tuple[int, ...]:
        return tuple(range(-len(self.spatial), 0))
