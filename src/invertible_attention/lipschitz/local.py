"""Local Lipschitz constants of a map and of its inverse: estimates, never bounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from invertible_attention.lipschitz.jacobian import Jacobian, norm, per_sample

__all__ = ["Extremes", "krylov_extremes", "local_lipschitz_estimate", "smallest_stretch_estimate"]

Batch = Float[Tensor, "batch *event"]


@dataclass(frozen=True)
class Extremes:
    """Extreme Ritz values of symmetric operators, one operator per sample.

    Attributes:
        smallest: Never below the smallest eigenvalue.
        largest: Never above the largest.
        smallest_vector: Where ``smallest`` is attained.
    """

    smallest: Float[Tensor, " batch"]
    largest: Float[Tensor, " batch"]
    smallest_vector: Batch


def local_lipschitz_estimate(
    function: Callable[[Tensor], Tensor],
    x: Batch,
    *,
    steps: int = 20,
    generator: torch.Generator | None = None,
) -> Float[Tensor, " batch"]:
    r"""Estimate :math:`\|J(x)\|_2` per sample from below.

    The largest Ritz value of :math:`J^\top J` in a Krylov space: as power iteration, but never worse after
    the same number of products.

    Args:
        function: The map, samples independent of each other.
        x: Points.
        steps: Products with ``J`` and its transpose.
        generator: Source of the random start.

    Returns:
        One estimate per sample.

    Example:
        >>> x = torch.zeros(1, 2)
        >>> round(local_lipschitz_estimate(lambda x: x * torch.tensor([3.0, 1.0]), x).item(), 4)
        3.0
    """
    jacobian = Jacobian(function, x)
    extremes = krylov_extremes(
        lambda v: jacobian.apply_transpose(jacobian.apply(v)), _start(x, generator), steps
    )
    return extremes.largest.clamp_min(0).sqrt()


def smallest_stretch_estimate(
    function: Callable[[Tensor], Tensor],
    x: Batch,
    *,
    steps: int = 20,
    generator: torch.Generator | None = None,
) -> tuple[Float[Tensor, " batch"], Batch]:
    r"""Estimate :math:`\min_{\|v\|=1}\|J(x)v\|` per sample from above, with the direction.

    Near zero the map folds or flattens there, and an inverse loses all precision.

    Args:
        function: The map, samples independent of each other.
        x: Points.
        steps: Products with ``J`` and its transpose.
        generator: Source of the random start.

    Returns:
        One estimate and one unit vector per sample.
    """
    jacobian = Jacobian(function, x)
    extremes = krylov_extremes(
        lambda v: jacobian.apply_transpose(jacobian.apply(v)), _start(x, generator), steps
    )
    return extremes.smallest.clamp_min(0).sqrt(), extremes.smallest_vector


def krylov_extremes(operator: Callable[[Tensor], Tensor], start: Batch, steps: int) -> Extremes:
    """Return the extreme Ritz values of symmetric operators after some Lanczos steps.

    The basis is orthogonalized twice against all of itself, so no spurious values appear. Where a sample's
    space is exhausted, its remaining diagonal repeats the first entry, which lies between the extremes.

    Args:
        operator: Applies one symmetric operator per sample.
        start: First vectors, not zero.
        steps: Dimension of the Krylov space, at most that of the event.
    """
    shape, dtype = start.shape, torch.promote_types(start.dtype, torch.float32)
    steps = max(1, min(steps, start[0].numel()))
    v = start.flatten(1).to(dtype)
    v = v / v.norm(dim=1, keepdim=True)
    basis, diagonal, off_diagonal = [v], [], []
    alive = torch.ones(len(v), dtype=torch.bool, device=v.device)
    largest = torch.zeros(len(v), dtype=dtype, device=v.device)
    for step in range(steps):
        w = operator(v.reshape(shape).to(start.dtype)).flatten(1).to(dtype)
        alpha = (v * w).sum(1)
        diagonal.append(torch.where(alive, alpha, diagonal[0] if diagonal else alpha))
        largest = torch.maximum(largest, w.norm(dim=1))
        if step == steps - 1:
            break
        space = torch.stack(basis, dim=1)
        for _ in range(2):
            w = w - torch.einsum("bkd,bk->bd", space, torch.einsum("bkd,bd->bk", space, w))
        beta = w.norm(dim=1)
        alive = alive & (beta > 10 * torch.finfo(dtype).eps * len(basis) * largest)
        off_diagonal.append(torch.where(alive, beta, torch.zeros_like(beta)))
        v = torch.where(alive[:, None], w / beta.clamp_min(torch.finfo(dtype).tiny)[:, None], 0)
        basis.append(v)
    T = torch.diag_embed(torch.stack(diagonal, 1))
    if off_diagonal:
        beta = torch.stack(off_diagonal, 1)
        T = T + torch.diag_embed(beta, 1) + torch.diag_embed(beta, -1)
    finite = T.isfinite().all(-1).all(-1)
    values, vectors = torch.linalg.eigh(torch.where(finite[:, None, None], T, 0))
    values = torch.where(finite[:, None], values, torch.nan)
    smallest = torch.einsum("bkd,bk->bd", torch.stack(basis, 1), vectors[..., 0])
    # an exhausted space has zero vectors, which may have been chosen where all eigenvalues are equal
    smallest = torch.where(smallest.norm(dim=1, keepdim=True) < 0.5, basis[0], smallest)
    return Extremes(values[:, 0], values[:, -1], smallest.reshape(shape).to(start.dtype))


def _start(x: Tensor, generator: torch.Generator | None) -> Tensor:
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    v = noise.to(x)
    return v / per_sample(norm(v), v).to(v.dtype)
