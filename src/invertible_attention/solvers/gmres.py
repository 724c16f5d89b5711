"""GMRES on a batch of linear systems, each stopped on its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from invertible_attention.solvers.batched import inner_products, sample_norm, wide_dtype

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
    batch, device, wide = b.shape[0], b.device, wide_dtype(b.device)
    norm = sample_norm(b)
    most = int(limit.max()) if batch else 0
    products = torch.zeros(batch, dtype=torch.int64, device=device)
    residual = torch.where(norm > 0, 1.0, 0.0).to(wide)
    basis = (b / torch.where(norm > 0, norm, 1.0).to(b.dtype)[:, None])[:, None]
    triangle = torch.zeros(batch, most, most, dtype=wide, device=device)
    cosine, sine = (torch.zeros(batch, most, dtype=wide, device=device) for _ in range(2))
    right = torch.zeros(batch, most + 1, dtype=wide, device=device)
    right[:, 0] = norm
    # Components below the rounding of the basis vectors are noise, and dividing by them would amplify it.
    noise = 16 * torch.finfo(b.dtype).eps
    size = torch.zeros(batch, dtype=wide, device=device)
    working = ((residual > tolerance) & (limit > 0) & torch.isfinite(norm)).nonzero().flatten()
    for column in range(most):
        if working.numel() == 0:
            break
        vector, coefficients = _orthogonalize(product(basis[working, -1], working), basis[working])
        length = sample_norm(vector)
        products[working] += 1
        finite = torch.isfinite(length)
        working, vector, coefficients, length = (t[finite] for t in (working, vector, coefficients, length))
        size[working] = torch.maximum(size[working], torch.hypot(sample_norm(coefficients), length))
        least = noise * size[working]
        entries, c, s = _rotate(coefficients, length, cosine[working], sine[working], least)
        triangle[working, : column + 1, column] = entries
        cosine[working, column], sine[working, column] = c, s
        right[working, column + 1] = -s * right[working, column]
        right[working, column] *= c
        residual[working] = right[working, column + 1].abs() / norm[working]
        # A space that cannot grow holds the solution, or A is singular on it: stop in both cases.
        grows = length > least
        following = torch.zeros_like(b)
        following[working] = vector / torch.where(length > 0, length, 1.0).to(b.dtype)[:, None]
        basis = torch.cat([basis, following[:, None]], dim=1)
        unsolved = (residual[working] > tolerance[working]) & (products[working] < limit[working]) & grows
        working = working[unsolved]
    columns = basis.shape[1] - 1
    coefficients = _back_substitute(triangle[:, :columns, :columns], right[:, :columns])
    x = torch.bmm(coefficients.to(b.dtype)[:, None], basis[:, :columns])[:, 0]
    return LinearSolution(x, residual, products)


def _orthogonalize(
    vector: Float[Tensor, "rows features"], basis: Float[Tensor, "rows columns features"]
) -> tuple[Float[Tensor, "rows features"], Float[Tensor, "rows columns"]]:
    """Return ``vector`` without its components along the basis, and the components."""
    total = torch.zeros(basis.shape[:2], dtype=wide_dtype(basis.device), device=basis.device)
    # Twice is enough: one pass leaves components of the size of the rounding it canceled.
    for _ in range(2):
        components = inner_products(basis, vector[:, None])
        vector = vector - torch.bmm(components.to(vector.dtype).mT, basis)[:, 0]
        total = total + components[:, :, 0]
    return vector, total


def _rotate(
    coefficients: Float[Tensor, "rows columns"],
    length: Float[Tensor, " rows"],
    cosine: Float[Tensor, "rows most"],
    sine: Float[Tensor, "rows most"],
    least: Float[Tensor, " rows"],
) -> tuple[Tensor, Tensor, Tensor]:
    """Apply the earlier Givens rotations to a column of the Hessenberg matrix, and find the next one."""
    entries = list(coefficients.unbind(dim=1))
    for row in range(len(entries) - 1):
        c, s = cosine[:, row], sine[:, row]
        upper, lower = entries[row], entries[row + 1]
        entries[row], entries[row + 1] = c * upper + s * lower, c * lower - s * upper
    radius = torch.hypot(entries[-1], length)
    # A column that depends on the others cannot lower the residual: the rotation passes it on unchanged.
    usable = radius > least
    safe = torch.where(usable, radius, 1.0)
    c, s = torch.where(usable, entries[-1] / safe, 0.0), torch.where(usable, length / safe, 1.0)
    entries[-1] = torch.where(usable, radius, 0.0)
    return torch.stack(entries, dim=1), c, s


def _back_substitute(
    triangle: Float[Tensor, "batch columns columns"], right: Float[Tensor, "batch columns"]
) -> Float[Tensor, "batch columns"]:
    """Solve the triangular systems, leaving out columns that are zero: unused, or where ``A`` is singular."""
    usable = triangle.diagonal(dim1=1, dim2=2) > 0
    # The others have the equation that their coefficient is zero.
    system = torch.where(usable[:, :, None], triangle, 0.0) + torch.diag_embed(~usable)
    right = torch.where(usable, right, 0.0)
    return torch.linalg.solve_triangular(system, right[:, :, None], upper=True)[:, :, 0]
