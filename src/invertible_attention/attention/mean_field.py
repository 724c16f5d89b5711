r"""The linear part of attention: its derivative where all weights are equal or as the prior has them, nearly.

With equal weights every token receives the mean token, and the derivative of :math:`g` is :math:`\Pi \otimes W`, where
:math:`\Pi` averages over tokens and :math:`W = \gamma W_L W_F` is a small matrix. With a prior over relative position
it is the circular convolution :math:`\sum_h \pi_h \otimes W_h`, and a matrix of :math:`W`'s size for every frequency.
Both are diagonal in a known basis but for these small matrices :math:`\hat J_f`, so everything is known in closed form:

.. math:: J_0 = S \hat J A, \qquad \log\det(I + J_0) = \sum_f \log\det(I + \hat J_f G_f), \qquad
          (I + J_0)^{-1} r = r - S\, \hat J (I + G \hat J)^{-1} A\, r

with the analysis :math:`A` (mean, or FFT) and the synthesis :math:`S` of the basis, and :math:`G = A S`, which is 1
but where tokens lie outside the ball they are projected on. There :math:`A` begins with the derivative of the
projection: of each token before a mean; before an FFT, which keeps its basis only if all tokens go through the same,
the average over tokens, so that :math:`J_0` is the circular convolution nearest to the derivative.

Weights that are equal now change with their query. To first order about equal weights, moving :math:`x_i` by
:math:`\delta` then moves the output at :math:`i` by :math:`K \delta`, with the same small matrix for every token,

.. math:: K = \gamma\, W_L \frac{1}{N} \sum_j v_j \Big(\frac{\partial \sigma(\bar x, x_j)}{\partial \bar x}\Big)^\top

(where rows sum to one, of both factors less their means). On what has mean zero over the tokens, which :math:`J_0` maps
to zero, this is most of the trace, and a determinant of :math:`K`'s size to the power :math:`N - 1`. With :math:`Q` the
projection on it

.. math:: I + J_1 = (I + Q \otimes K)(I + J_0)

is known in closed form as well, and the Jacobian itself where all tokens are equal. That of trained attention is
:math:`J_1` but for small terms. So the inverse preconditions a solver, and the determinant is the control variate of
an estimator.

**Norm.** The certificate (:mod:`invertible_attention.lipschitz.certificate`) is proved for any weights whose range is
at most :math:`M`, as the sum of a bound for the part of the values and of bounds for those of the scores; of the
slopes it uses only that they are at most :math:`\ell_q`. With equal weights the values' part is :math:`J_0` and the
queries' part :math:`Q \otimes K`: so :math:`\|J_1\| \le \|J_0\| + \|Q \otimes K\|` is at most the certificate.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from invertible_attention._mapped import plain
from invertible_attention.attention.ball import Projection
from invertible_attention.attention.bases import Basis, Fourier, Image, Mean
from invertible_attention.solvers.gmres import gmres

__all__ = ["LinearPart", "MeanWithQueries", "ProjectedConvolution"]

# Of solvers' steps, which shrink a residual by this much at most where the derivative is known so well.
_STEP_TOLERANCE = 1e-3
_MOST_PRODUCTS = 20


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

    @staticmethod
    def convolution(
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
        basis = Fourier(tuple(kernel.shape[1:]))
        transfer = basis.transfer(kernel)
        matrices = torch.einsum("hf,hij->fij", transfer, weights.to(transfer.dtype))
        inside = LinearPart(basis, gain.reshape(-1, 1, 1, 1) * matrices)
        # Where no token is moved all samples share their blocks.
        if projection is None or not bool((plain(projection.normal) != 0).any()):
            return inside
        basis = Fourier(basis.spatial, projection.average())
        return ProjectedConvolution(basis, inside.matrices, inside, projection)

    def apply(self, v: Image, *, transposed: bool = False) -> Image:
        """Return ``J₀ v``, or ``J₀ᵀ v``."""
        return self.multiply(self.matrices, v, transposed)

    def solve(self, r: Image, *, transposed: bool = False) -> Image:
        """Return ``(I + J₀)⁻¹ r``, or ``(I + J₀)⁻ᵀ r``.

        Not checked: where nothing is certified a block may be singular, and solvers judge every step they take.
        """
        if len(self._shifted) == 1:
            return r - self.multiply(self.resolvent, r, transposed)
        # Blocks of each sample: one system takes less than an inverse.
        matrices, shifted = (m.mH if transposed else m for m in (self.matrices, self._shifted))
        vector = self.basis.analyze(r.to(_real(matrices.dtype)), transposed)[..., None]
        if transposed:
            vector = torch.linalg.solve_ex(shifted, matrices @ vector)[0]
        else:
            vector = matrices @ torch.linalg.solve_ex(shifted, vector)[0]
        return r - self.basis.synthesize(vector[..., 0], r, transposed)

    def precondition(self, r: Image, *, transposed: bool = False) -> Image:
        """Return about ``(I + J)⁻¹ r``, or ``(I + J)⁻ᵀ r``."""
        return self.solve(r, transposed=transposed)

    def log_determinant(self) -> Float[Tensor, "batch_or_one"]:
        """Return ``log |det(I + J₀)|``."""
        logarithms = torch.linalg.slogdet(self._shifted).logabsdet
        return (logarithms * self.basis.multiplicity(logarithms)).sum(-1)

    def select(self, samples: Int[Tensor, " rows"]) -> LinearPart:
        """Return the linear part of some of the samples."""
        return replace(self, **self._selected(samples))

    def _selected(self, samples: Int[Tensor, " rows"]) -> dict[str, Any]:
        return {"basis": self.basis.select(samples), "matrices": _of(self.matrices, samples)}

    def multiply(self, matrices: Tensor, v: Image, transposed: bool) -> Image:
        """Return ``S M A v`` for one matrix per component, or its transpose times ``v``."""
        coefficients = self.basis.analyze(v.to(_real(matrices.dtype)), transposed)
        blocks = matrices.mH if transposed else matrices
        if len(blocks) == 1:
            # Channels of all samples next to each other: one product, and no copy of the blocks for each sample.
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
    def resolvent(self) -> Tensor:
        """The blocks of ``1 - (I + J₀)⁻¹``."""
        return torch.linalg.solve_ex(self._shifted, self.matrices, left=False)[0]


@dataclass(frozen=True)
class ProjectedConvolution(LinearPart):
    """A convolution after the average derivative of the projection, which knows that of each token.

    Args:
        inside: The convolution alone, which it is for tokens inside the ball.
        projection: What tokens go through.
    """

    inside: LinearPart
    projection: Projection

    def _selected(self, samples: Int[Tensor, " rows"]) -> dict[str, Any]:
        more = {"inside": self.inside.select(samples), "projection": self.projection.select(samples)}
        return super()._selected(samples) | more

    def precondition(self, r: Image, *, transposed: bool = False) -> Image:
        """Return about ``(I + J)⁻¹ r`` or ``(I + J)⁻ᵀ r``, with the projection of each token.

        The convolution after it has no inverse in closed form, but products that are cheap next to an evaluation.
        """
        r = r.to(_real(self.matrices.dtype))
        index = self.projection.outside.nonzero().flatten()

        def product(v: Tensor, rows: Tensor) -> Tensor:
            samples = index[rows]
            projection = self.projection.select(samples)
            v = v.view(-1, *r.shape[1:])
            v = v - self.inside.multiply(_of(self.inside.resolvent, samples), v, transposed)
            u = v if transposed else projection.apply(v.flatten(2)).view_as(v)
            u = self.inside.multiply(_of(self.matrices, samples), u, transposed)
            u = projection.apply(u.flatten(2)).view_as(u) if transposed else u
            return (v + u).flatten(1)

        tolerance = torch.full(index.shape, _STEP_TOLERANCE, dtype=r.dtype, device=r.device)
        limit = torch.full_like(index, min(_MOST_PRODUCTS, r[0].numel()))
        found = gmres(product, r[index].flatten(1), tolerance=tolerance, limit=limit).x
        r = r.index_copy(0, index, found.view(-1, *r.shape[1:]))
        return self.inside.solve(r, transposed=transposed)


@dataclass(frozen=True)
class MeanWithQueries(LinearPart):
    r"""The average over tokens and how its weights follow queries: :math:`J_1 = J_0 + Q \otimes K`, :math:`K = U V`.

    Args:
        basis: That of :math:`J_0`, the average.
        matrices: Its block alone.
        left: :math:`U`.
        right: :math:`V`.
        count: Number of (valid) tokens, for all samples or one for each.
    """

    basis: Mean
    left: Float[Tensor, "batch channels rank"]
    right: Float[Tensor, "*batch rank channels"]
    count: Float[Tensor, " batch"] | int

    def apply(self, v: Image, *, transposed: bool = False) -> Image:
        """Return ``J₁ v``, or ``J₁ᵀ v``."""
        return super().apply(v, transposed=transposed) + self._centered(self.right, v, transposed)

    def solve(self, r: Image, *, transposed: bool = False) -> Image:
        """Return ``(I + J₁)⁻¹ r``, or ``(I + J₁)⁻ᵀ r``."""
        if transposed:
            r = super().solve(r, transposed=True)
            return r - self._centered(self._solved, r, True)
        return super().solve(r - self._centered(self._solved, r, False))

    def _selected(self, samples: Int[Tensor, " rows"]) -> dict[str, Any]:
        count, right = self.count, self.right
        more = {
            "left": self.left[samples],
            "right": right if right.ndim == 2 else right[samples],
            "count": count[samples] if isinstance(count, Tensor) else count,
        }
        return super()._selected(samples) | more

    def log_determinant(self) -> Float[Tensor, "batch_or_one"]:
        """Return ``log |det(I + J₁)|``."""
        return super().log_determinant() + (self.count - 1) * torch.linalg.slogdet(self._small).logabsdet

    @cached_property
    def _small(self) -> Float[Tensor, "batch rank rank"]:
        """``1 + V U``, whose determinant is that of ``1 + U V``."""
        identity = torch.eye(self.left.shape[-1], dtype=self.left.dtype, device=self.left.device)
        return identity + self.right @ self.left

    @cached_property
    def _solved(self) -> Float[Tensor, "batch rank channels"]:
        """``(1 + V U)⁻¹ V``, so that ``(1 + U V)⁻¹`` is 1 less ``U`` times this."""
        return torch.linalg.solve_ex(self._small, self.right.expand(len(self.left), -1, -1))[0]

    def _centered(self, right: Tensor, v: Image, transposed: bool) -> Image:
        """Return ``(Q ⊗ U R) v``, or its transpose times ``v``."""
        first, second = (self.left.mT, right.mT) if transposed else (right, self.left)
        return (second @ (first @ self.basis.center(v.to(self.left.dtype)).flatten(2))).reshape(v.shape)


def _of(blocks: Tensor, samples: Int[Tensor, " rows"]) -> Tensor:
    """Return the blocks of some samples, if they do not share them."""
    return blocks if len(blocks) == 1 else blocks[samples]


def _real(dtype: torch.dtype) -> torch.dtype:
    return {torch.complex64: torch.float32, torch.complex128: torch.float64}.get(dtype, dtype)
