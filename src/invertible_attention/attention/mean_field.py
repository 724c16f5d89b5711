r"""The linear part of attention: what its derivative is where all weights are equal, or as the prior has them.

With equal weights every token receives the mean token, and the derivative of :math:`g` is :math:`\Pi \otimes W`, where
:math:`\Pi` averages over tokens and :math:`W = \gamma W_L W_F` is a small matrix. With a prior over relative position
it is the circular convolution :math:`\sum_h \pi_h \otimes W_h`, and a matrix of :math:`W`'s size for every frequency.
Both are diagonal in a known basis but for these small matrices :math:`\hat J_f`, so everything is known in closed form:

.. math:: \log\det(I + J_0) = \sum_f \log\det(I + \hat J_f), \qquad
          (I + J_0)^{-1} r = r - S\, \hat J (I + \hat J)^{-1} A\, r

with the analysis :math:`A` (mean, or FFT) and the synthesis :math:`S` of the basis. The derivative of trained attention
is :math:`J_0` but for small terms. So the inverse preconditions a solver, and the determinant is the control variate of
an estimator.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["Basis", "Fourier", "LinearPart", "Mean"]

Image = Float[Tensor, "batch channels *spatial"]


class Basis(ABC):
    """Vectors over tokens that a linear part maps to multiples of themselves, with a matrix for factor."""

    @abstractmethod
    def analyze(self, v: Image) -> Tensor:
        """Return the coefficients of ``v``, ``(batch, components, channels)``."""

    @abstractmethod
    def synthesize(self, coefficients: Tensor, like: Image) -> Image:
        """Return the combination of vectors with the given coefficients, of the shape of ``like``."""

    @abstractmethod
    def multiplicity(self, like: Tensor) -> Float[Tensor, "batch_or_one components"]:
        """Return how many vectors share each component's matrix."""


@dataclass(frozen=True)
class Mean(Basis):
    """The one vector that is constant over (valid) tokens.

    Args:
        mask: True where a token is valid, ``(batch, tokens)``; ``None`` if all are.
    """

    mask: Bool[Tensor, "batch tokens"] | None = None

    def analyze(self, v: Image) -> Tensor:
        """Average over the valid tokens."""
        tokens = v.flatten(2)
        if self.mask is None:
            return tokens.mean(2)[:, None]
        count = self.mask.sum(1).clamp_min(1)[:, None, None]
        return tokens.masked_fill(~self.mask[:, None], 0.0).sum(2)[:, None] / count

    def synthesize(self, coefficients: Tensor, like: Image) -> Image:
        """Give every valid token the mean, and zero to the others."""
        tokens = coefficients.mT.expand(-1, -1, like[0, 0].numel())
        if self.mask is not None:
            tokens = tokens * self.mask[:, None]
        return tokens.reshape(like.shape)

    def multiplicity(self, like: Tensor) -> Float[Tensor, "batch_or_one components"]:
        """One, where there is a valid token."""
        return like.new_ones(1, 1) if self.mask is None else self.mask.any(1, keepdim=True).to(like.dtype)


@dataclass(frozen=True)
class Fourier(Basis):
    """Waves on the torus of positions; of each pair of conjugate ones only one is kept.

    Args:
        spatial: Size of the grid.
    """

    spatial: tuple[int, ...]

    def analyze(self, v: Image) -> Tensor:
        """Transform."""
        return torch.fft.rfftn(v, dim=self._axes).flatten(2).mT

    def synthesize(self, coefficients: Tensor, like: Image) -> Image:
        """Transform back."""
        shape = (*like.shape[:2], *self.spatial[:-1], self.spatial[-1] // 2 + 1)
        return torch.fft.irfftn(coefficients.mT.reshape(shape), s=self.spatial, dim=self._axes)

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
    ) -> LinearPart:
        r"""Return :math:`\Pi \otimes \gamma W`.

        Args:
            weight: :math:`W`.
            gain: :math:`\gamma`, for all samples or one for each.
            mask: True where a token is valid; the others are neither seen nor changed.

        Example:
            >>> import torch
            >>> x = torch.tensor([[[1.0, 3.0]]])
            >>> part = LinearPart.average(torch.tensor([[1.0]]), torch.tensor(0.5))
            >>> part.apply(x), part.solve(x + part.apply(x))
            (tensor([[[1., 1.]]]), tensor([[[1., 3.]]]))
            >>> part.log_determinant()  # log 1.5
            tensor([0.4055])
        """
        return cls(Mean(mask), gain.reshape(-1, 1, 1, 1) * weight)

    @classmethod
    def convolution(
        cls,
        kernel: Float[Tensor, "heads *spatial"],
        weights: Float[Tensor, "heads channels channels"],
        gain: Float[Tensor, "*batch"],
    ) -> LinearPart:
        r"""Return :math:`\gamma \sum_h \pi_h \otimes W_h`, circular.

        Args:
            kernel: :math:`\pi_h`, by relative position.
            weights: :math:`W_h`.
            gain: :math:`\gamma`, for all samples or one for each.
        """
        basis = Fourier(tuple(kernel.shape[1:]))
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
        coefficients = self.basis.analyze(v.to(_real(matrices.dtype)))
        blocks = matrices.mH if transposed else matrices
        if len(blocks) == 1:
            # Channels of all samples beside each other: one product, and no copy of the blocks for each sample.
            product = (blocks[0] @ coefficients.permute(1, 2, 0)).permute(2, 0, 1)
        else:
            product = (blocks @ coefficients[..., None])[..., 0]
        return self.basis.synthesize(product, v)

    @cached_property
    def _shifted(self) -> Tensor:
        size = self.matrices.shape[-1]
        return self.matrices + torch.eye(size, dtype=self.matrices.dtype, device=self.matrices.device)

    @cached_property
    def _resolvent(self) -> Tensor:
        # Not checked: where nothing is certified a block may be singular, and solvers judge every step they take.
        return torch.linalg.solve_ex(self._shifted, self.matrices)[0]


def _real(dtype: torch.dtype) -> torch.dtype:
    return {torch.complex64: torch.float32, torch.complex128: torch.float64}.get(dtype, dtype)
