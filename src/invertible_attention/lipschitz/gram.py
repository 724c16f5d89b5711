"""Gram iteration: the upper bound of the spectral norm behind every guarantee of this library."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

__all__ = [
    "as_real",
    "exact_arithmetic",
    "gram_bound",
    "gram_bounds",
    "repeated_twice",
    "stack_key",
    "working_dtype",
]


def gram_bound(
    real: Float[Tensor, "*batch m n"],
    imag: Float[Tensor, "*batch m n"] | None = None,
    *,
    iterations: int,
) -> Float[Tensor, "*batch"]:
    r"""Bound the spectral norm of real or complex matrices from above by Gram iteration.

    With :math:`G_0 = W` and :math:`G_{t+1} = G_t^* G_t`,

    .. math:: \|W\|_2 = \|G_t\|_2^{1/2^t} \le \|G_t\|_F^{1/2^t}
        = \Big(\sum_i \sigma_i^{2^{t+1}}\Big)^{1/2^{t+1}} \quad \text{for every } t,

    and the excess over :math:`\|W\|_2` shrinks at least by half (in the logarithm) with every iteration.
    Iterates are divided by their Frobenius norms :math:`s_t`, so nothing over- or underflows, and the
    bound is the product :math:`s_0 \sqrt{s_1 \sqrt{s_2 \cdots}}`. A complex matrix :math:`A + iB` is the real one
    :math:`\begin{pmatrix} A & -B \\ B & A \end{pmatrix}`, whose singular values are its own, each of them twice.

    **Gradient.** It has the direction :math:`W G_1 G_2 \cdots G_t`, and the bound is homogeneous of degree one, so
    :math:`\langle \text{gradient}, W\rangle` is the bound: :math:`t` products of the iterates, and no graph.

    **Rounding.** The result is inflated so that it is not below the exact norm although it was computed in
    floating point: a product with inner dimension :math:`k` perturbs :math:`G_t` by at most
    :math:`\gamma_k\|G_{t-1}\|_F^2`, which moves the logarithm of the bound by
    :math:`2^{-t}\gamma_k\|G_{t-1}\|_F^2/\|G_{t-1}\|_2^2`, and :math:`1/s_t^2` bounds that ratio from above.
    :math:`\gamma_k` is the worst case over all orders of summation, :math:`k u` with ``u`` the unit roundoff;
    long sums are cut into blocks, which are summed in turn, so that it grows with :math:`\sqrt k` only. The
    inflation carries no gradient.

    Args:
        real: Real parts.
        imag: Imaginary parts, ``None`` for real matrices.
        iterations: Number of Gram products ``t``; zero gives the Frobenius norm.

    Returns:
        One bound per matrix, zero with zero gradients for a zero matrix.

    Raises:
        ValueError: If ``iterations`` is negative.

    References:
        Delattre et al. 2023, *Efficient Bound of Lipschitz Constant for Convolutional Layers by Gram
        Iteration*.
    """
    if imag is None:
        return gram_bounds([real], iterations=iterations)[0]
    return gram_bounds([as_real(real, imag)], iterations=iterations)[0] / repeated_twice(iterations)


def as_real(real: Float[Tensor, "*batch m n"], imag: Float[Tensor, "*batch m n"]) -> Tensor:
    """Return complex matrices as real ones of twice the size; :func:`repeated_twice` says what that does to a bound."""
    return torch.cat([torch.cat([real, -imag], -1), torch.cat([imag, real], -1)], -2)


def repeated_twice(iterations: int) -> float:
    """Return the factor by which the bound exceeds that of a matrix with every singular value once instead of twice."""
    return 2**0.5 ** (iterations + 1) * (1 - 1e-15)


def gram_bounds(
    matrices: Sequence[Float[Tensor, "*batch m n"]], *, iterations: int
) -> list[Float[Tensor, "*batch"]]:
    """Bound the norms of matrices of several shapes, those of a similar size in one stack, padded with zeros.

    See :func:`gram_bound`.
    """
    if iterations < 0:
        raise ValueError(f"iterations must not be negative, got {iterations}")
    tall = [matrix if matrix.shape[-2] >= matrix.shape[-1] else matrix.mT for matrix in matrices]
    stacks: dict[object, list[int]] = {}
    for index, matrix in enumerate(tall):
        stacks.setdefault(stack_key(matrix), []).append(index)
    bounds = list(tall)
    for indices in stacks.values():
        rows = max(tall[index].shape[-2] for index in indices)
        columns = max(tall[index].shape[-1] for index in indices)
        flat = [_padded(tall[index].reshape(-1, *tall[index].shape[-2:]), rows, columns) for index in indices]
        stack = flat[0] if len(flat) == 1 else torch.cat(flat)
        found = _bound(stack, iterations) if torch.compiler.is_compiling() else _Gram.apply(stack, iterations)
        parts = [found] if len(flat) == 1 else found.split([len(part) for part in flat])
        for index, part in zip(indices, parts, strict=True):
            bounds[index] = part.reshape(tall[index].shape[:-2])
    return bounds


def stack_key(matrix: Float[Tensor, "*batch m n"]) -> object:
    """Return what matrices have in common that are bounded in one stack."""
    rows, columns = max(matrix.shape[-2:]), min(matrix.shape[-2:])
    size = 1 << (max(rows, 64) - 1).bit_length(), 1 << (max(columns, 16) - 1).bit_length()
    return size, matrix.dtype, matrix.device


def _padded(matrices: Tensor, rows: int, columns: int) -> Tensor:
    missing = columns - matrices.shape[-1], rows - matrices.shape[-2]
    return F.pad(matrices, (0, missing[0], 0, missing[1])) if any(missing) else matrices


class _Gram(torch.autograd.Function):
    """The bound with its derivative in closed form, which is differentiated in turn like any other function."""

    generate_vmap_rule = True

    @staticmethod
    def forward(W: Tensor, iterations: int) -> Tensor:
        return _bound(W, iterations)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        W, ctx.iterations = inputs
        ctx.save_for_backward(W)
        ctx.save_for_forward(W)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        (W,) = ctx.saved_tensors
        with exact_arithmetic(W):
            return upstream[0][:, None, None] * _derivative(W, ctx.iterations), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        (W,) = ctx.saved_tensors
        return (_derivative(W, ctx.iterations) * tangents[0]).sum((-2, -1))


def _bound(W: Float[Tensor, "batch m n"], iterations: int) -> Float[Tensor, " batch"]:
    inner, size = W.shape[-2:]
    matrix, peak, zero = _scaled(W)
    norms: list[Tensor | None] = []
    for step in range(iterations + 1):
        matrix = matrix if step == 0 else _product(matrix, matrix)
        if step < iterations:
            norm = None
            # Every other time: of norm 1 and rank r, the next two iterates have norms of at least r^(-3/2).
            if step % 2 or not step:
                norm = torch.linalg.vector_norm(matrix, dim=(-2, -1), keepdim=True)
                matrix = matrix / norm
            norms.append(norm)
    # Only the last norm must be exact: an error of the others is undone by the division.
    bound = last = (matrix * matrix).sum(-1, keepdim=True).sum(-2, keepdim=True).sqrt()
    for norm in norms[::-1]:
        bound = bound.sqrt() if norm is None else norm * bound.sqrt()
    # A sum of squares over rows and columns; the root halves what it is wrong by.
    slack = 8.0 + (size if iterations else (inner + size) / 2) / 2**iterations
    if iterations:
        # The ratio ‖G‖²_F/‖G‖²_2 falls from product to product, so that of the first bounds them all.
        first = (last if iterations == 1 else cast(Tensor, norms[1])).detach()
        slack = (_product_error(inner) + _product_error(size)) / first.square() + slack
    unit = torch.finfo(W.dtype).eps / 2
    smallest = torch.finfo(W.dtype).smallest_normal * torch.finfo(W.dtype).eps
    bound = bound * (slack * unit + 1) * peak + smallest
    return (bound * ~zero)[:, 0, 0]


def _derivative(W: Float[Tensor, "batch m n"], iterations: int) -> Float[Tensor, "batch m n"]:
    """Return the derivative of the bound without its inflation: W G_1 ⋯ G_t, of the length that is known."""
    matrix, _, zero = _scaled(W)
    matrix = start = matrix / torch.linalg.vector_norm(matrix, dim=(-2, -1), keepdim=True)
    norms = []
    direction = start
    for _ in range(iterations):
        matrix = _product(matrix, matrix)
        norms.append(torch.linalg.vector_norm(matrix, dim=(-2, -1), keepdim=True))
        matrix = matrix / norms[-1]
        direction = torch.bmm(direction, matrix)
    length = torch.ones_like(start[:, :1, :1])
    for norm in norms[::-1]:
        length = (norm * length).sqrt()
    along = (direction * start).sum((-2, -1), keepdim=True)
    return direction * (length / along * ~zero)


def _scaled(W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Divide by the largest entry, so that no square over- or underflows; zero matrices are replaced by ones.

    Ones have finite derivatives of every order. Returns the scaled matrices, the scale (no gradient), and which
    matrices were zero.
    """
    peak = W.detach().abs().amax((-2, -1), keepdim=True)
    zero = peak == 0
    peak = peak + zero
    return W / peak + zero, peak, zero


def working_dtype(tensor: Tensor) -> torch.dtype:
    """Return the precision norms are computed in: ``float32`` or better, and never TF32 or bfloat16.

    Where PyTorch may silently round the operands of ``float32`` products, ``float64`` is used instead.
    """
    if not tensor.is_floating_point():
        raise ValueError(f"norms are defined for floating point weights, got {tensor.dtype}")
    if tensor.dtype == torch.float64 or (
        tensor.device.type in ("cpu", "cuda") and _setting(_products_are_rounded)
    ):
        return torch.float64
    return torch.float32


def exact_arithmetic(tensor: Tensor) -> AbstractContextManager[object]:
    """Return a context in which autocast leaves products of ``tensor``'s device alone."""
    device = tensor.device.type
    if _setting(torch.amp.is_autocast_available, device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


def _setting(function: Callable[..., bool], *args: str) -> bool:
    """Return what a function of PyTorch's settings returns, a constant to a compiler."""
    if torch.compiler.is_compiling():
        from invertible_attention._compiler import constant

        return constant(function, *args)
    return function(*args)


def _products_are_rounded() -> bool:
    backends = (torch.backends, torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None))
    settings = {getattr(backend, "fp32_precision", None) for backend in backends} - {None}
    if not settings:  # PyTorch before 2.9 has one switch for all backends
        return torch.get_float32_matmul_precision() != "highest"
    return not settings <= {"none", "ieee"}


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Return ``aᵀ b``, summed in blocks where the inner dimension is long."""
    inner = a.shape[-2]
    block = _block(inner)
    if block == inner:
        return torch.bmm(a.mT, b)
    # zero rows complete the last block
    parts = [F.pad(t, (0, 0, 0, -inner % block)).unflatten(-2, (-1, block)) for t in (a, b)]
    return (parts[0].mT @ parts[1]).sum(-3)


def _block(inner: int) -> int:
    return inner if inner <= 128 else max(128, math.isqrt(inner - 1) + 1)


def _product_error(inner: int) -> float:
    """Return the Frobenius error of one Gram product in units of ``u‖G‖²_F``."""
    block = _block(inner)
    return block + -(-inner // block) + 8
