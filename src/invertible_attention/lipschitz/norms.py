"""Norms of matrices: upper bounds for guarantees, estimates for everything else."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from invertible_attention.lipschitz.gram import exact_arithmetic, gram_bounds, working_dtype

__all__ = [
    "log_spectral_norm_upper_bound",
    "power_iteration",
    "spectral_norm_estimate",
    "spectral_norm_upper_bound",
    "spectral_norm_upper_bounds",
]


def spectral_norm_upper_bound(W: Float[Tensor, "*batch m n"], iterations: int = 7) -> Float[Tensor, "*batch"]:
    r"""Bound the spectral norm from above: never below the exact norm, whatever the scale.

    Gram iteration, see :func:`~invertible_attention.lipschitz.gram.gram_bound`:

    .. math:: \|W\|_2 \le \|G_t\|_F^{1/2^t}, \qquad G_0 = W, \quad G_{t+1} = G_t^\top G_t.

    The factor above the exact norm is at most :math:`r^{1/2^{t+1}}` for a matrix of rank :math:`r`,
    reached only where all singular values are equal. The function has no state, is differentiable (a zero
    matrix has bound zero and gradient zero), and works under :mod:`torch.func` and :func:`torch.compile`.

    Args:
        W: Matrices. ``bfloat16`` and ``float16`` are computed in ``float32``, also inside autocast.
        iterations: Gram products ``t``. 6 to 8 suffice.

    Returns:
        One bound per matrix, in ``float32`` or better.

    Raises:
        ValueError: Not a floating point matrix, an empty one, or fewer than zero iterations.

    Example:
        >>> W = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
        >>> spectral_norm_upper_bound(W)
        tensor(3.0000)
    """
    return spectral_norm_upper_bounds([W], iterations)[0]


def spectral_norm_upper_bounds(
    matrices: Sequence[Float[Tensor, "*batch m n"]], iterations: int = 7
) -> list[Float[Tensor, "*batch"]]:
    """Bound the spectral norms of matrices of several shapes from above, together.

    See :func:`spectral_norm_upper_bound`, also for the errors it raises.
    """
    for W in matrices:
        _check(W)
    with exact_arithmetic(matrices[0]):
        return gram_bounds([W.to(working_dtype(W)) for W in matrices], iterations=iterations)


def log_spectral_norm_upper_bound(
    W: Float[Tensor, "*batch m n"], iterations: int = 7
) -> Float[Tensor, "*batch"]:
    r"""Bound :math:`\log\|W\|_2` from above: ``-inf`` with zero gradient for a zero matrix.

    Args:
        W: Matrices.
        iterations: Gram products.

    Returns:
        One bound per matrix, in ``float32`` or better.

    Raises:
        ValueError: As :func:`spectral_norm_upper_bound`.

    Example:
        >>> log_spectral_norm_upper_bound(torch.zeros(2, 2))
        tensor(-inf)
    """
    bound = spectral_norm_upper_bound(W, iterations)
    zero = bound == 0
    log = torch.where(zero, torch.ones_like(bound), bound).log()
    log = log + 2 * torch.finfo(log.dtype).eps * (1 + log.detach().abs())
    return torch.where(zero, torch.full_like(log, -torch.inf), log)


def power_iteration(
    W: Float[Tensor, "*batch m n"],
    iterations: int,
    *,
    vector: Float[Tensor, "*batch n"] | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch n"]]:
    r"""Estimate the spectral norm from below, and return the vector that attains the estimate.

    .. math:: v \leftarrow W^\top W v / \|W^\top W v\|, \qquad \|W v\| \le \|W\|_2 .

    Args:
        W: Matrices.
        iterations: Updates of ``v``; zero evaluates the start.
        vector: Where to start, for example from the previous call (warm start); ``None`` draws it.
        generator: Source of the random start.

    Returns:
        The estimate, differentiable in ``W`` with ``v`` held fixed as in the paper (Eq. 4), and the unit
        vectors ``v``, detached.

    Raises:
        ValueError: Not a floating point matrix, an empty one, a negative number of iterations, or
            a start of another shape.
    """
    _check(W)
    if iterations < 0:
        raise ValueError(f"iterations must not be negative, got {iterations}")
    with exact_arithmetic(W):
        W = W.to(working_dtype(W))
        if vector is None:
            shape = (*W.shape[:-2], W.shape[-1])
            vector = torch.randn(shape, dtype=W.dtype, device=W.device, generator=generator)
        if vector.shape != (*W.shape[:-2], W.shape[-1]):
            raise ValueError(f"a start for matrices {tuple(W.shape)} cannot be {tuple(vector.shape)}")
        matrix = W.detach()
        v = _unit(vector.detach().to(W.dtype))
        for _ in range(iterations):
            product = _unit(_apply(matrix.mT, _unit(_apply(matrix, v))))
            # a zero product means that v lies in the kernel: it stays, and says so with an estimate of zero
            v = torch.where((product == 0).all(-1, keepdim=True), v, product)
        return _norm(_apply(W, v)), v


def spectral_norm_estimate(
    W: Float[Tensor, "*batch m n"],
    iterations: int = 30,
    *,
    vector: Float[Tensor, "*batch n"] | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "*batch"]:
    """Estimate the spectral norm from below by power iteration; no guarantee may rest on it.

    See :func:`power_iteration`, which also returns the vector for a warm start.

    Example:
        >>> spectral_norm_estimate(torch.diag(torch.tensor([2.0, 1.0])), vector=torch.ones(2))
        tensor(2.)
    """
    return power_iteration(W, iterations, vector=vector, generator=generator)[0]


def _check(W: Tensor) -> None:
    if W.ndim < 2 or 0 in W.shape[-2:]:
        raise ValueError(f"expected matrices (..., m, n) with m, n > 0, got shape {tuple(W.shape)}")


def _apply(matrix: Tensor, v: Tensor) -> Tensor:
    return (matrix @ v[..., None])[..., 0]


def _norm(v: Tensor) -> Tensor:
    """Return the Euclidean norm over the last axis, safe from over- and underflow and at zero."""
    scale = v.detach().abs().amax(-1)
    zero = scale == 0
    scale = torch.where(zero, torch.ones_like(scale), scale)
    scaled = torch.where(zero[..., None], torch.ones_like(v), v / scale[..., None])
    return torch.where(zero, torch.zeros_like(scale), (scaled * scaled).sum(-1).sqrt() * scale)


def _unit(v: Tensor) -> Tensor:
    norm = _norm(v)[..., None]
    return v / torch.where(norm == 0, torch.ones_like(norm), norm)
