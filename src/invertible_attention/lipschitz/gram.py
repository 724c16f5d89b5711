"""Gram iteration: the upper bound of the spectral norm behind every guarantee of this library."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.compiler import assume_constant_result

__all__ = ["exact_arithmetic", "gram_bound", "rescale", "working_dtype"]


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
    Each iterate is divided by its Frobenius norm :math:`s_t`, so nothing over- or underflows, and the
    bound is the product :math:`s_0 \sqrt{s_1 \sqrt{s_2 \cdots}}`. The real and imaginary parts are kept
    apart because then a complex product costs two real ones, and real arithmetic compiles.

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
    if iterations < 0:
        raise ValueError(f"iterations must not be negative, got {iterations}")
    if real.shape[-2] < real.shape[-1]:
        real, imag = real.mT, None if imag is None else imag.mT
    inner, size = real.shape[-2:]
    (real, imag), scale, zero = rescale(real, imag, dims=2)
    real, imag, norm = _normalize(real, imag)
    norms = [norm]
    unit = torch.finfo(real.dtype).eps / 2
    slack = 8.0 + (size if iterations else inner + size) / 2**iterations
    for step in range(1, iterations + 1):
        real, imag = _gram(real, imag)
        real, imag, norm = _normalize(real, imag)
        norms.append(norm)
        slack = slack + 2.0 ** (1 - step) * _product_error(inner, imag is not None) / norm.detach() ** 2
        inner = size
    bound = norms[-1]
    for norm in norms[-2::-1]:
        bound = norm * bound.sqrt()
    smallest = torch.finfo(real.dtype).smallest_normal * torch.finfo(real.dtype).eps
    bound = bound * (1 + unit * slack) * scale + smallest
    return torch.where(zero, torch.zeros_like(bound), bound)


def rescale(
    real: Tensor, imag: Tensor | None = None, *, dims: int
) -> tuple[tuple[Tensor, Tensor | None], Tensor, Tensor]:
    """Divide by the largest entry over the last ``dims`` axes, so that no square over- or underflows.

    An all-zero block is replaced by ones: its norms then have finite derivatives of every order, and the
    caller masks the value.

    Returns:
        The scaled parts, the scale (no gradient) and where the block was zero.
    """
    axes = tuple(range(-dims, 0))
    scale = real.detach().abs().amax(dim=axes)
    if imag is not None:
        scale = torch.maximum(scale, imag.detach().abs().amax(dim=axes))
    zero = scale == 0
    scale = torch.where(zero, torch.ones_like(scale), scale)
    divisor, mask = (t.reshape(*t.shape, *(1,) * dims) for t in (scale, zero))
    real = torch.where(mask, torch.ones_like(real), real / divisor)
    if imag is not None:
        imag = torch.where(mask, torch.zeros_like(imag), imag / divisor)
    return (real, imag), scale, zero


def working_dtype(tensor: Tensor) -> torch.dtype:
    """Return the precision norms are computed in: ``float32`` or better, and never TF32 or bfloat16.

    Where PyTorch may silently round the operands of ``float32`` products, ``float64`` is used instead.
    """
    if not tensor.is_floating_point():
        raise ValueError(f"norms are defined for floating point weights, got {tensor.dtype}")
    if tensor.dtype == torch.float64 or (tensor.device.type in ("cpu", "cuda") and _products_are_rounded()):
        return torch.float64
    return torch.float32


def exact_arithmetic(tensor: Tensor) -> AbstractContextManager[object]:
    """Return a context in which autocast leaves products of ``tensor``'s device alone."""
    device = tensor.device.type
    if _has_autocast(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


@assume_constant_result
def _has_autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device)


@assume_constant_result
def _products_are_rounded() -> bool:
    backends = (torch.backends, torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None))
    settings = {getattr(backend, "fp32_precision", None) for backend in backends} - {None}
    if not settings:  # PyTorch before 2.9 has one switch for all backends
        return torch.get_float32_matmul_precision() != "highest"
    return not settings <= {"none", "ieee"}


def _gram(real: Tensor, imag: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return ``G* G``; for ``G = A + iB``: ``(A+B)ᵀ(A+B) − P − Pᵀ`` and ``P − Pᵀ`` with ``P = AᵀB``."""
    if imag is None:
        return _product(real, real), None
    cross = _product(real, imag)
    total = real + imag
    return _product(total, total) - cross - cross.mT, cross - cross.mT


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Return ``aᵀ b``, summed in blocks where the inner dimension is long."""
    inner = a.shape[-2]
    block = _block(inner)
    if block == inner:
        return a.mT @ b
    # zero rows complete the last block
    parts = [F.pad(t, (0, 0, 0, -inner % block)).unflatten(-2, (-1, block)) for t in (a, b)]
    return (parts[0].mT @ parts[1]).sum(-3)


def _block(inner: int) -> int:
    return inner if inner <= 128 else max(128, math.isqrt(inner - 1) + 1)


def _normalize(real: Tensor, imag: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor]:
    squares = (real * real).sum(-1).sum(-1)
    if imag is not None:
        squares = squares + (imag * imag).sum(-1).sum(-1)
    norm = squares.sqrt()
    divisor = norm[..., None, None]
    return real / divisor, None if imag is None else imag / divisor, norm


def _product_error(inner: int, is_complex: bool) -> float:
    """Return the Frobenius error of one Gram product in units of ``u‖G‖²_F``."""
    block = _block(inner)
    return (4.0 if is_complex else 1.0) * (block + -(-inner // block) + 8)
