"""GMRES on a batch of linear systems, each stopped on its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from invertible_attention.solvers.batched import inner_products, sample_norm
from invertible_attention.solvers.problem import select

__all__ = ["LinearSolution", "gmres"]


@dataclass(frozen=True)
class LinearSolution:
    """The solution of ``A x = b`` for a batch.

    Args:
        x: approximate solutions.
        residual: ``‖b - A x‖ / ‖b‖``, as the Arnoldi process sees it.
        products: products with ``A`` spent on each sample.
    """

    x: Float[Tensor, "batch features"]
    residual: Float[Tensor, " batch"]
    products: Int[Tensor, " batch"]


def gmres(
    product: Callable[[Tensor, Tensor], Tensor],
    b: Float[Tensor, "batch features"],
    *,
    tolerance: Float[Tensor, " batch"],
    limit: Int[Tensor, " batch"],
) -> LinearSolution:
    r"""Minimize :math:`\|b - A x\|` over Krylov spaces that grow until each sample is solved.

    Never raises on breakdown: a sample whose space cannot grow, or whose products are not finite, stops with
    what it has.

    Args:
        product: ``product(v, rows) -> A v`` for the samples named by ``rows``; called with unsolved ones only.
        b: right-hand sides.
        tolerance: relative residual at which a sample stops.
        limit: most products per sample.

    References:
        Saad and Schultz, *GMRES: a generalized minimal residual algorithm*, SIAM J. Sci. Stat. Comput. 7, 1986.
    """
    norm = sample_norm(b)
    solution = LinearSolution(
        torch.zeros_like(b), (norm > 0).to(norm.dtype), torch.zeros_like(norm, dtype=torch.int64)
    )
    samples = ((solution.residual > tolerance) & (limit > 0) & (norm < torch.inf)).nonzero().flatten()
    if samples.numel() == 0:
        return solution
    systems = _Systems.start(b[samples], norm[samples], tolerance[samples], limit[samples])
    while True:
        image = product(systems.basis[:, -1], samples)
        length = sample_norm(image)
        # One that is not finite says as much as one that is zero.
        image = image.masked_fill(~(length < torch.inf)[:, None], 0.0)
        systems, unsolved = systems.extend(image, length)
        kept = unsolved.nonzero().flatten()
        if kept.numel() == samples.numel() > 0:
            continue
        ended = (~unsolved).nonzero().flatten()
        select(systems, ended).write(solution, samples[ended], systems.columns)
        if kept.numel() == 0:
            return solution
        systems, samples = select(systems, kept), samples[kept]


@dataclass(frozen=True)
class _Systems:
    """The systems that are not solved yet.

    Args:
        norm: of the right-hand sides.
        tolerance: relative residual at which each stops.
        limit: most products of each.
        basis: orthonormal vectors that span the Krylov space.
        rotation: the product of all Givens rotations, so far the identity beyond the columns there are.
        triangle: the Hessenberg matrix after them.
        size: the largest image of a basis vector.
    """

    norm: Float[Tensor, " systems"]
    tolerance: Float[Tensor, " systems"]
    limit: Int[Tensor, " systems"]
    basis: Float[Tensor, "systems columns features"]
    rotation: Float[Tensor, "systems most most"]
    triangle: Float[Tensor, "systems most most"]
    size: Float[Tensor, " systems"]

    @classmethod
    def start(cls, b: Tensor, norm: Tensor, tolerance: Tensor, limit: Tensor) -> _Systems:
        """Return the systems before the first product."""
        most = int(limit.max()) + 1
        rotation = torch.eye(most, dtype=norm.dtype, device=norm.device).repeat(len(b), 1, 1)
        basis = (b / norm.to(b.dtype)[:, None])[:, None]
        return cls(
            norm, tolerance, limit, basis, rotation, torch.zeros_like(rotation), torch.zeros_like(norm)
        )

    @property
    def columns(self) -> int:
        """How many products there were."""
        return self.basis.shape[1] - 1

    def extend(
        self, image: Float[Tensor, "systems features"], length: Float[Tensor, " systems"]
    ) -> tuple[_Systems, Bool[Tensor, " systems"]]:
        """Return the systems with the image of the newest basis vector, and which of them are not solved then.

        Args:
            image: what the matrix maps that vector to.
            length: its norm.
        """
        column, rotation = self.columns, self.rotation
        size = torch.maximum(self.size, length)
        vector, coefficients = _orthogonalize(image, self.basis)
        length = sample_norm(vector)
        entries = torch.bmm(rotation[:, : column + 1, : column + 1], coefficients)[:, :, 0]
        last = entries[:, -1]
        radius = torch.hypot(last, length)
        # Components below the rounding of the basis vectors are noise, and dividing by them would amplify it.
        least = 16 * torch.finfo(vector.dtype).eps * size
        # A column that depends on the others cannot lower the residual: the rotation passes it on unchanged.
        usable = radius > least
        tiny = torch.finfo(length.dtype).tiny
        safe = radius.clamp_min(tiny)
        cosine = last / safe * usable
        sine = torch.where(usable, length / safe, 1.0)
        self.triangle[:, : column + 1, column] = entries
        self.triangle[:, column, column] = radius * usable
        row = rotation[:, column].clone()
        rotation[:, column] = cosine[:, None] * row
        rotation[:, column, column + 1] = sine
        rotation[:, column + 1] = -sine[:, None] * row
        rotation[:, column + 1, column + 1] = cosine
        following = vector / length.clamp_min(tiny).to(vector.dtype)[:, None]
        systems = replace(self, basis=torch.cat([self.basis, following[:, None]], dim=1), size=size)
        # A space that cannot grow holds the solution, or A is singular on it: stop in both cases.
        unsolved = (systems.residual > self.tolerance) & (self.limit > column + 1) & (length > least)
        return systems, unsolved

    @property
    def residual(self) -> Float[Tensor, " systems"]:
        """The relative residuals."""
        return self.rotation[:, self.columns, 0].abs()

    def write(self, solution: LinearSolution, samples: Int[Tensor, " systems"], products: int) -> None:
        """Write what was found to the samples of a solution."""
        columns = self.columns
        right = self.norm[:, None] * self.rotation[:, :columns, 0]
        coefficients = _back_substitute(self.triangle[:, :columns, :columns], right)
        basis = self.basis[:, :columns]
        solution.x[samples] = torch.bmm(coefficients.to(basis.dtype)[:, None], basis)[:, 0]
        solution.residual[samples] = self.residual
        solution.products[samples] = products


def _orthogonalize(
    vector: Float[Tensor, "rows features"], basis: Float[Tensor, "rows columns features"]
) -> tuple[Float[Tensor, "rows features"], Float[Tensor, "rows columns 1"]]:
    """Return ``vector`` without its components along the basis, and the components."""
    total = None
    # Twice is enough: one pass leaves components of the size of the rounding it canceled.
    for _ in range(2):
        components = inner_products(basis, vector[:, None])
        vector = vector - torch.bmm(components.to(vector.dtype).mT, basis)[:, 0]
        total = components if total is None else total + components
    return vector, cast(Tensor, total)


def _back_substitute(
    triangle: Float[Tensor, "batch columns columns"], right: Float[Tensor, "batch columns"]
) -> Float[Tensor, "batch columns"]:
    """Solve the triangular systems, leaving out columns that are zero: unused, or where ``A`` is singular."""
    usable = triangle.diagonal(dim1=1, dim2=2) > 0
    # The others have the equation that their coefficient is zero.
    system = torch.where(usable[:, :, None], triangle, 0.0) + torch.diag_embed(~usable)
    right = torch.where(usable, right, 0.0)
    return torch.linalg.solve_triangular(system, right[:, :, None], upper=True)[:, :, 0]
