r"""The linear part of attention: what its derivative is where all weights are equal, or as the prior has them.

With equal weights every token receives the mean token, and the derivative of :math:`g` is :math:`\Pi \otimes W`, where
:math:`\Pi` averages over tokens and :math:`W = \gamma W_L W_F` is a small matrix. With a prior over relative position
it is the circular convolution :math:`\sum_h \pi_h \otimes W_h`, and a matrix of :math:`W`'s size for every frequency.
Both are diagonal in a known basis but for these small matrices :math:`\hat J_f`, so everything is known in closed form:

.. math:: J_0 = S \hat J A, \qquad \log\det(I + J_0) = \sum_f \log\det(I + \hat J_f G_f), \qquad
          (I + J_0)^{-1} r = r - S\, \hat J (I + G \hat J)^{-1} A\, r

with the analysis :math:`A` (mean, or FFT) and the synthesis :math:`S` of the basis, and :math:`G = A S`, which is 1
but where tokens lie outside the ball they are projected on. There :math:`A` begins with the derivative of the
projection: of each token before a mean; before an FFT, which keeps its basis only if all tokens go through the same,
the average over tokens, so that :math:`J_0` is the circular convolution nearest to the derivative. That of trained
attention is :math:`J_0` but for small terms. So the inverse preconditions a solver, and the determinant is the control
variate of an estimator.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from invertible_attention._mapped import plain

__all__ = ["Basis", "Fourier", "LinearPart", "Mean", "Projection"]

Image = Float[Tensor, "batch channels *spatial"]


@dataclass(frozen=True)
class Projection:
    r"""The derivative of the projection on a ball, of each token: :math:`\frac{\rho}{\|x\|} (I - n n^\top)` outside it.

    Args:
        scale: :math:`\min(1, \rho / \|x\|)`.
        normal: :math:`n = x / \|x\|` outside the ball, zero inside.
    """

    scale: Float[Tensor, "batch 1 tokens"]
    normal: Float[Tensor, "batch channels tokens"]

    @classmethod
    def at(cls, tokens: Float[Tensor, "batch channels tokens"], radius: Float[Tensor, ""]) -> Projection:
        """Return the derivative at the given tokens."""
        norm = torch.linalg.vector_norm(tokens, dim=1, keepdim=True)
        farthest = torch.maximum(norm, radius)
        return cls(radius / farthest, torch.where(norm > radius, tokens / farthest, 0.0))

    def apply(self, v: Float[Tensor, "batch channels tokens"]) -> Float[Tensor, "batch channels tokens"]:
        """Multiply a vector per token; the derivative is symmetric."""
        return self.scale * (v - self.normal * (self.normal * v).sum(1, keepdim=True))

    def average(
        self, mask: Bool[Tensor, "batch tokens"] | None = None
    ) -> Float[Tensor, "batch channels channels"]:
        """Return the mean derivative of the (valid) tokens, a symmetric matrix."""
        scale = self.scale if mask is None else self.scale.masked_fill(~mask[:, None], 0.0)
        count = scale.shape[2] if mask is None else mask.sum(1)[:, None, None].clamp_min(1)
        identity = torch.eye(self.normal.shape[1], dtype=scale.dtype, device=scale.device)
        return (scale.sum(2)[..., None] * identity - (scale * self.normal) @ self.normal.mT) / count


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
        tokens = coefficients.mT.expand(-1, -1, like[0, 0].numel())
        if self.projection is not None and transposed:
            tokens = self.projection.apply(tokens)
        if self.mask is not None:
            tokens = tokens * self.mask[:, None]
        return tokens.reshape(like.shape)

    def gram(self, like: Tensor) -> Tensor:
        """Return the mean of the projection's derivative."""
        if self.projection is None:
            return torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)
        return self.projection.average(self.mask)[:, None]

    def multiplicity(self, like: Tensor) -> Float[Tensor, "batch_or_one components"]:
        """One, where there is a valid token."""
        return like.new_ones(1, 1) if self.mask is None else self.mask.any(1, keepdim=True).to(like.dtype)

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

    def transfer(self, kernel: Float[Tensor, "heads *spatial"]) -> Tensor:
        """Return the factor of each component under the convolution with ``kernel``, ``(heads, components)``."""
        return torch.fft.rfftn(kernel, dim=self._axes).flatten(1)

    def _mapped(self, v: Image) -> Image:
        return v if self.before is None else (self.before @ v.flatten(2)).reshape(v.shape)

    @property
    def _axes(self) -> tuple[int, ...]:
        return tuple(range(-len(self.spatial), 0))


@dataclass(frozen=True)
class LinearPart:
    r"""A linear map :math:`J_0` near the Jacobian of a branch, its inverse and its determinant in closed form.

    Args:
        basis: In which it is block-diagonal.
        matrices: The blocks :math:`\hat J_f`, ``(batch or 1, components, channels, channels)``.
    """

    basis: Basis
    matrices: Tensor

    @classmethod
    def average(
        cls,
        weight: Float[Tensor, "channels channels"],
        gain: Float[Tensor, "*batch"],
        mask: Bool[Tensor, "batch tokens"] | None = None,
        projection: Projection | None = None,
    ) -> LinearPart:
        r"""Return :math:`\Pi \otimes \gamma W`, after the projection's derivative.

        Args:
            weight: :math:`W`.
            gain: :math:`\gamma`, for all samples or one for each.
            mask: True where a token is valid; the others are neither seen nor changed.
            projection: What tokens go through before they are averaged.

        Example:
            >>> import torch
            >>> x = torch.tensor([[[1.0, 3.0]]])
            >>> part = LinearPart.average(torch.tensor([[1.0]]), torch.tensor(0.5))
            >>> part.apply(x), part.solve(x + part.apply(x))
            (tensor([[[1., 1.]]]), tensor([[[1., 3.]]]))
            >>> part.log_determinant()  # log 1.5
            tensor([0.4055])
        """
        return cls(Mean(mask, projection), gain.reshape(-1, 1, 1, 1) * weight)

    @classmethod
    def convolution(
        cls,
        kernel: Float[Tensor, "heads *spatial"],
        weights: Float[Tensor, "heads channels channels"],
        gain: Float[Tensor, "*batch"],
        projection: Projection | None = None,
    ) -> LinearPart:
        r"""Return :math:`\gamma \sum_h \pi_h \otimes W_h`, circular, after the projection's average derivative.

        Args:
            kernel: :math:`\pi_h`, by relative position.
            weights: :math:`W_h`.
            gain: :math:`\gamma`, for all samples or one for each.
            projection: What tokens go through before they are convolved.
        """
        # Where no token is moved all samples share their blocks.
        moved = projection is not None and bool((plain(projection.normal) != 0).any())
        basis = Fourier(tuple(kernel.shape[1:]), projection.average() if projection and moved else None)
        transfer = basis.transfer(kernel)
        matrices = torch.einsum("hf,hij->fij", transfer, weights.to(transfer.dtype))
        return cls(basis, gain.reshape(-1, 1, 1, 1) * matrices)

    def apply(self, v: Image, *, transposed: bool = False) -> Image:
        """Return ``J₀ v``, or ``J₀ᵀ v``."""
        return self._multiply(self.matrices, v, transposed)

    def solve(self, r: Image, *, transposed: bool = False) -> Image:
        """Return ``(I + J₀)⁻¹ r``, or ``(I + J₀)⁻ᵀ r``."""
        return r - self._multiply(self._resolvent, r, transposed)

    def log_determinant(self) -> Float[Tensor, "batch_or_one"]:
        """Return ``log |det(I + J₀)|``."""
        logarithms = torch.linalg.slogdet(self._shifted).logabsdet
        return (logarithms * self.basis.multiplicity(logarithms)).sum(-1)

    def _multiply(self, matrices: Tensor, v: Image, transposed: bool) -> Image:
        coefficients = self.basis.analyze(v.to(_real(matrices.dtype)), transposed)
        blocks = matrices.mH if transposed else matrices
        if len(blocks) == 1:
            # Channels of all samples beside each other: one product, and no copy of the blocks for each sample.
            product = (blocks[0] @ coefficients.permute(1, 2, 0)).permute(2, 0, 1)
        else:
            product = (blocks @ coefficients[..., None])[..., 0]
        return self.basis.synthesize(product, v, transposed)

    @cached_property
    def _shifted(self) -> Tensor:
        size = self.matrices.shape[-1]
        identity = torch.eye(size, dtype=self.matrices.dtype, device=self.matrices.device)
        return identity + self.basis.gram(self.matrices) @ self.matrices

    @cached_property
    def _resolvent(self) -> Tensor:
        # Not checked: where nothing is certified a block may be singular, and solvers judge every step they take.
        return torch.linalg.solve_ex(self._shifted, self.matrices, left=False)[0]


def _real(dtype: torch.dtype) -> torch.dtype:
    return {torch.complex64: torch.float32, torch.complex128: torch.float64}.get(dtype, dtype)
