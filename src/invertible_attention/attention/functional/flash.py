r"""Attention with exponentials of inner products through PyTorch's own fused kernels, in O(N) memory.

Scaled dot-product attention computes :math:`S(w) = P w` with :math:`P_{bn} = e^{x_b \cdot y_n - L_b}`, normalized
over n. Row normalization is :math:`S` with queries for x. **Column normalization is its adjoint**, with keys for x
and queries for y: the response matrix is :math:`P^\top`, the forward pass is the vector–Jacobian product of S with
respect to its value, and for an upstream gradient u,

- the gradient of the values is :math:`S(u)`,
- the gradients of keys and queries are those of S itself at value u with the values as cotangent.

Two kernels do this. :class:`CpuKernel` computes :math:`P^\top u` strip by strip, in one pass, while strips have rows
enough; beyond that in two passes of the CPU's kernel. The gradients are that kernel's. :class:`PortableKernel` needs
the public function only, and serves every device.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from invertible_attention.attention.functional import fused
from invertible_attention.attention.functional.blocked import batch_in_one_go, has_few_rows, map_strips
from invertible_attention.attention.functional.form import Form
from invertible_attention.attention.functional.fused import Kernel, PerRow, Rows, RowValues, Tokens, Values
from invertible_attention.attention.functional.products import Adjoint
from invertible_attention.attention.functional.strips import StripFunction, Tensors
from invertible_attention.attention.functional.strips import run as run_strips
from invertible_attention.attention.functional.weighting import Weighting

__all__ = ["CpuKernel", "PortableKernel", "attend", "kernel_for"]

# Fused kernels want a head dimension that is a multiple of this.
_ALIGNMENT = 8
# Tokens looked at for a first estimate of a row's largest score.
_REFERENCE_TOKENS = 128


def attend(
    query: Float[Tensor, "batch heads queries dim"],
    key: Float[Tensor, "batch heads keys dim"],
    value: Float[Tensor, "batch heads keys features"],
    form: Form,
    kernel: Kernel | None = None,
) -> Float[Tensor, "batch heads queries features"]:
    """Multiply the values by the response matrix of a form with ``combine="product"`` and ``phi="exp"``.

    Args:
        query: queries.
        key: keys.
        value: values.
        form: normalized by column or row, or by all where the kernel hands out the logarithms of its sums.
        kernel: the kernel for the device by default.

    Returns:
        One row per query.
    """
    return fused.attend(query, key, value, kernel or kernel_for(query.device), form.normalization)


def kernel_for(device: torch.device) -> Kernel:
    """Choose the kernel for a device."""
    return CpuKernel() if device.type == "cpu" else PortableKernel()


class _SoftmaxKernel(Kernel):
    weighting = Weighting("product", "exp")

    def reference(self, x: Rows, y: Tokens) -> PerRow:
        """Estimate each row's largest score.

        The kernels round the logarithm of a row's sum to float32. Kept small by this constant it loses little; at
        its full size it would lose the digits that large scores need.
        """
        step = -(-y.shape[-2] // _REFERENCE_TOKENS)
        return (x.detach() @ y.detach()[..., ::step, :].mT).amax(-1, keepdim=True)

    def _shifted(self, x: Rows, y: Tokens) -> tuple[Tensor, Tensor]:
        return _shifted(x, y, self.reference(x, y))


class CpuKernel(_SoftmaxKernel):
    """The CPU's fused kernel."""

    own_gradients = True

    def product(self, x: Rows, y: Tokens, w: Values, reference: PerRow | None) -> tuple[RowValues, PerRow]:
        """Run the kernel once; the product alone does not depend on how the logarithms are rounded."""
        if reference is not None:
            x, y = _shifted(x, y, reference)
        out, total = _cpu_kernel(*_padded(x, y, w))
        return _trimmed(out, w), total.clone()

    def adjoint(self, x: Rows, y: Tokens, u: RowValues) -> Values:
        """Sum up strips, in one pass where the kernel needs two, while they have rows enough to be worth it."""
        if has_few_rows(y):
            return self._in_two_passes(x, y, u)
        size = batch_in_one_go(y, x)
        pieces = zip(x.split(size), u.split(size), y.split(size), strict=True)
        return torch.cat(
            [map_strips(Adjoint(self.weighting), (x, None, u), (y, None))[0] for x, u, y in pieces]
        )

    def _in_two_passes(self, x: Rows, y: Tokens, u: RowValues) -> Values:
        """Run the kernel for the logarithms of the sums, then once more with the roles exchanged."""
        x, y = self._shifted(x, y)
        log_total = _cpu_kernel(*_padded(x, y, y))[1]
        out, log_sum = _cpu_kernel(*_padded(*_shifted(x, y, log_total)[::-1], u))
        return _trimmed(out, u) * torch.exp(log_sum)

    def gradients(
        self, x: Rows, y: Tokens, u: RowValues, w: Values
    ) -> tuple[Rows, RowValues, Tokens, Values]:
        """Run the kernel and its gradient once for each part of the rows: its gradient gives a core to a head."""
        query, key, value, cotangent = _padded(*self._shifted(x, y), w, u)
        results = run_strips(_CpuGradients(), query.shape[-2], (query, cotangent), (key, value))
        to_query, out, to_key, to_value = results
        return _trimmed(to_query, x), _trimmed(out, w), _trimmed(to_key, y), _trimmed(to_value, w)


class PortableKernel(_SoftmaxKernel):
    """PyTorch's public function and its gradients, on whatever device."""

    own_gradients = True

    def product(self, x: Rows, y: Tokens, w: Values, reference: PerRow | None) -> tuple[RowValues, None]:
        """Run the kernel once."""
        query, key, value = _padded(x, y, w)
        return _trimmed(_attention(query, key, value), w), None

    def adjoint(self, x: Rows, y: Tokens, u: RowValues) -> Values:
        """Pull the cotangent back to the value."""
        query, key, cotangent = _padded(*self._shifted(x, y), u)
        pull = torch.func.vjp(lambda value: _attention(query, key, value), torch.zeros_like(key))[1]
        return _trimmed(pull(cotangent)[0], u)

    def gradients(
        self, x: Rows, y: Tokens, u: RowValues, w: Values
    ) -> tuple[Rows, RowValues, Tokens, Values]:
        """Run the kernel and its gradient once."""
        query, key, value = _padded(*self._shifted(x, y), w)
        out, pull = torch.func.vjp(_attention, query, key, value)[:2]
        to_query, to_key, to_value = pull(F.pad(u, (0, value.shape[-1] - u.shape[-1])))
        return _trimmed(to_query, x), _trimmed(out, w), _trimmed(to_key, y), _trimmed(to_value, w)


def _attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, scale=1.0)


def _cpu_kernel(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    # Called past the checks of the public function: it reads features as if they lay side by side.
    query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    out, log_total = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, scale=1.0)
    return out, log_total[..., None]


class _CpuGradients(StripFunction):
    """Gradient of the CPU's kernel, with the product that it needs."""

    pieces = 2

    def __call__(self, strips: Tensors, wholes: Tensors) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        (query, cotangent), (key, value) = strips, wholes
        query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
        out, log_total = _cpu_kernel(query, key, value)
        to_query, to_key, to_value = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            cotangent.contiguous(), query, key, value, out, log_total[..., 0], 0.0, False, scale=1.0
        )
        return (to_query, out), (to_key, to_value)


def _shifted(x: Tensor, y: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    return torch.cat((x, -reference), -1), torch.cat((y, torch.ones_like(y[..., :1])), -1)


def _padded(*tensors: Tensor) -> tuple[Tensor, ...]:
    widest = max(tensor.shape[-1] for tensor in tensors)
    width = -(-widest // _ALIGNMENT) * _ALIGNMENT
    return tuple(F.pad(tensor, (0, width - tensor.shape[-1])) for tensor in tensors)


def _trimmed(padded: Tensor, like: Tensor) -> Tensor:
    """Drop padding; a copy, because a function of its own must not return views."""
    width = like.shape[-1]
    return padded if padded.shape[-1] == width else padded[..., :width].clone()
