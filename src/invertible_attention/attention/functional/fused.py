r"""Attention through fused kernels: what any of them needs to be differentiated to any order, batched and traced.

A kernel computes products with a row-normalized matrix :math:`P`, and with its transpose. Its derivatives are computed
strip by strip, in O(N) memory and to any order, unless it brings its own gradients; then the second derivatives
are.

PyTorch's scaled dot-product attention computes :math:`S(w) = P w` with :math:`P_{bn} = e^{x_b \cdot y_n - L_b}`,
normalized over n. Row normalization is :math:`S` with queries for x. **Column normalization is its adjoint**, with keys
for x and queries for y: the response matrix is :math:`P^\top`, the forward pass is the vector–Jacobian product of S
with respect to its value, and for an upstream gradient u,

- the gradient of the values is :math:`S(u)`,
- the gradients of keys and queries are those of S itself at value u with the values as cotangent.

Two kernels do this. :class:`CpuKernel` computes :math:`P^\top u` strip by strip, in one pass, while strips have rows
enough; beyond that in two passes of the CPU's kernel. The gradients are that kernel's. :class:`PortableKernel` needs
the public function only, and serves every device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from invertible_attention._precision import accurate
from invertible_attention.attention.functional.form import Form
from invertible_attention.attention.functional.products import Adjoint, Apply, Gradient, Weighting
from invertible_attention.attention.functional.strips import (
    StripFunction,
    Tensors,
    batch_in_one_go,
    has_few_rows,
    map_strips,
    run,
)

__all__ = ["CpuKernel", "Kernel", "PortableKernel", "attend", "fold_vmap", "kernel_for", "padded"]

# Fused kernels want a head dimension that is a multiple of this; those of a CPU are slower for a smaller one than for
# sixteen: benchmarks/head_width.py.
_ALIGNMENT = 8
_LEAST_ON_CPU = 16
# Tokens looked at for a first estimate of a row's largest score.
_REFERENCE_TOKENS = 32

Rows = Float[Tensor, "batch heads rows dim"]
Tokens = Float[Tensor, "batch heads tokens dim"]
Values = Float[Tensor, "batch heads tokens features"]
RowValues = Float[Tensor, "batch heads rows features"]
PerRow = Float[Tensor, "batch heads rows 1"]


class Kernel(ABC):
    """Products with :math:`P_{bn} = e^{\\ell_{bn} - L_b}`, normalized over n; no derivatives.

    Attributes:
        weighting: the weights before normalization.
        own_gradients: whether :meth:`gradients` is to be used.
    """

    weighting: Weighting
    own_gradients: bool = False

    @abstractmethod
    def product(
        self, x: Rows, y: Tokens, w: Values, reference: PerRow | None
    ) -> tuple[RowValues, PerRow | None]:
        """Compute ``P w`` and, where there is a reference, :math:`L` less it."""

    @abstractmethod
    def adjoint(self, x: Rows, y: Tokens, u: RowValues) -> Values:
        r"""Compute :math:`P^\top u`."""

    def reference(self, x: Rows, y: Tokens) -> PerRow:
        """Return constants the kernel may subtract from each row's scores; zero unless overridden."""
        return torch.zeros_like(x[..., :1])

    def gradients(
        self, x: Rows, y: Tokens, u: RowValues, w: Values
    ) -> tuple[Rows, RowValues, Tokens, Values]:
        """Differentiate ``<u, P w>`` with respect to x, u, y and w."""
        raise TypeError(f"{type(self).__name__} has no custom gradients")


def attend(
    query: Float[Tensor, "batch heads queries dim"],
    key: Float[Tensor, "batch heads keys dim"],
    value: Float[Tensor, "batch heads keys features"],
    form: Form,
    kernel: Kernel | None = None,
) -> Float[Tensor, "batch heads queries features"]:
    """Multiply the values by the response matrix of a form with ``combine="product"``.

    Args:
        query: queries.
        key: keys.
        value: values.
        form: φ is the kernel's; ``"all"`` needs a kernel that returns the logarithms of its sums.
        kernel: by default the one for ``phi="exp"`` on the device.

    Returns:
        One row per query.
    """
    kernel = kernel or kernel_for(query.device)
    if form.normalization == "column":
        return _Adjoint.apply(key, value, query, kernel)  # type: ignore[return-value]
    if form.normalization == "row":
        return _Product.apply(query, key, value, None, kernel)[0]  # type: ignore[index]
    reference = kernel.reference(query, key)
    product, log_total = _Product.apply(query, key, value, reference, kernel)  # type: ignore[misc]
    share = torch.softmax(accurate(reference) + accurate(log_total), -2)
    return product * share.to(product.dtype)


def kernel_for(device: torch.device) -> Kernel:
    """Choose the kernel for a device."""
    return CpuKernel() if device.type == "cpu" else PortableKernel()


class _Product(torch.autograd.Function):
    """``P w`` and, where there is a reference score, the logarithm of each row's sum less it."""

    @staticmethod
    def forward(
        x: Tensor, y: Tensor, w: Tensor, reference: Tensor | None, kernel: Kernel
    ) -> tuple[Tensor, ...]:
        out, total = kernel.product(x, y, w, reference)
        if reference is None:
            return (out,)
        assert total is not None
        return out, total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, reference, ctx.kernel = inputs
        ctx.log_total = reference is not None
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        x, y, w = ctx.saved_tensors
        if ctx.log_total or not ctx.kernel.own_gradients:
            gradient = Gradient(ctx.kernel.weighting, ("x", "y", "w"))
            dx, dy, dw = map_strips(gradient, (x, None, *cotangents), (y, None, w))
        else:
            dx, _, dy, dw = _Gradients.apply(x, cotangents[0], y, w, ctx.kernel)  # type: ignore[misc]
        return dx, dy, dw, None, None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, dy: Tensor, dw: Tensor, *_: None) -> tuple[Tensor, ...]:  # type: ignore[override]
        x, y, w = ctx.saved_tensors
        function = Apply(ctx.kernel.weighting, log_total=ctx.log_total)
        tangents = map_strips(function.pushforward(2, 3), (x, None, dx, None), (y, None, w, dy, None, dw))
        return tuple(tangent.to(x.dtype) for tangent in tangents)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Any, Any]:
        return fold_vmap(_Product, info, in_dims, inputs)


class _Adjoint(torch.autograd.Function):
    r""":math:`P^\top u`."""

    @staticmethod
    def forward(x: Tensor, u: Tensor, y: Tensor, kernel: Kernel) -> Tensor:
        return kernel.adjoint(x, y, u)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.kernel = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, u, y = ctx.saved_tensors
        if not ctx.kernel.own_gradients:
            gradient = Gradient(ctx.kernel.weighting, ("x", "u", "y"))
            dx, du, dy = map_strips(gradient, (x, None, u), (y, None, cotangent))
        else:
            dx, du, dy, _ = _Gradients.apply(x, u, y, cotangent, ctx.kernel)  # type: ignore[misc]
        return dx, du, dy, None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, du: Tensor, dy: Tensor, _: None) -> Tensor:  # type: ignore[override]
        x, u, y = ctx.saved_tensors
        pushforward = Adjoint(ctx.kernel.weighting).pushforward(3, 2)
        return map_strips(pushforward, (x, None, u, dx, None, du), (y, None, dy, None))[0]

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Any, Any]:
        return fold_vmap(_Adjoint, info, in_dims, inputs)


class _Gradients(torch.autograd.Function):
    """The kernel's own gradients of ``<u, P w>`` with respect to x, u, y and w."""

    @staticmethod
    def forward(x: Tensor, u: Tensor, y: Tensor, w: Tensor, kernel: Kernel) -> tuple[Tensor, ...]:
        return kernel.gradients(x, y, u, w)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.kernel = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        x, u, y, w = ctx.saved_tensors
        to_x, to_u, to_y, to_w = cotangents
        pullback = _bilinear(ctx.kernel).pullback(3, 3, (0, 2, 3, 5))
        results = map_strips(pullback, (x, None, u, to_x, to_u), (y, None, w, to_y, to_w))
        return *results, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> tuple[Tensor, ...]:
        x, u, y, w = ctx.saved_tensors
        dx, du, dy, dw, *_ = tangents
        pushforward = _bilinear(ctx.kernel).pushforward(3, 3)
        return map_strips(pushforward, (x, None, u, dx, None, du), (y, None, w, dy, None, dw))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Any, Any]:
        return fold_vmap(_Gradients, info, in_dims, inputs)


def _bilinear(kernel: Kernel) -> StripFunction:
    return Gradient(kernel.weighting, ("x", "u", "y", "w"))


def fold_vmap(
    function: Any, info: Any, in_dims: tuple[int | None, ...], inputs: tuple[Any, ...]
) -> tuple[Any, Any]:
    """Treat the mapped axis as a part of the batch, which the kernels already have."""

    def fold(given: Any, dim: int | None) -> Any:
        if not isinstance(given, Tensor):
            return given
        if dim is None:
            return given.expand(info.batch_size, *given.shape).flatten(0, 1)
        return given.movedim(dim, 0).flatten(0, 1)

    out = function.apply(*map(fold, inputs, in_dims))
    if isinstance(out, Tensor):
        return out.unflatten(0, (info.batch_size, -1)), 0
    return tuple(tensor.unflatten(0, (info.batch_size, -1)) for tensor in out), (0,) * len(out)


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
        out, total = _cpu_kernel(*padded(x, y, w))
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
        log_total = _cpu_kernel(*padded(x, y, y))[1]
        out, log_sum = _cpu_kernel(*padded(*_shifted(x, y, log_total)[::-1], u))
        return _trimmed(out, u) * torch.exp(log_sum)

    def gradients(
        self, x: Rows, y: Tokens, u: RowValues, w: Values
    ) -> tuple[Rows, RowValues, Tokens, Values]:
        """Run the kernel and its gradient once for each part of the rows: its gradient gives a core to a head."""
        query, key, value, cotangent = padded(*self._shifted(x, y), w, u)
        results = run(_CpuGradients(), query.shape[-2], (query, cotangent), (key, value))
        to_query, out, to_key, to_value = results
        return _trimmed(to_query, x), _trimmed(out, w), _trimmed(to_key, y), _trimmed(to_value, w)


class PortableKernel(_SoftmaxKernel):
    """PyTorch's public function and its gradients, on whatever device."""

    own_gradients = True

    def product(self, x: Rows, y: Tokens, w: Values, reference: PerRow | None) -> tuple[RowValues, None]:
        """Run the kernel once."""
        query, key, value = padded(x, y, w)
        return _trimmed(_attention(query, key, value), w), None

    def adjoint(self, x: Rows, y: Tokens, u: RowValues) -> Values:
        """Pull the cotangent back to the value."""
        query, key, cotangent = padded(*self._shifted(x, y), u)
        pull = torch.func.vjp(lambda value: _attention(query, key, value), torch.zeros_like(key))[1]
        return _trimmed(pull(cotangent)[0], u)

    def gradients(
        self, x: Rows, y: Tokens, u: RowValues, w: Values
    ) -> tuple[Rows, RowValues, Tokens, Values]:
        """Run the kernel and its gradient once."""
        query, key, value = padded(*self._shifted(x, y), w)
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


def padded(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Give all tensors as many features as fused kernels want, the last ones zero."""
    least = _LEAST_ON_CPU if tensors[0].device.type == "cpu" else _ALIGNMENT
    widest = max(least, *(tensor.shape[-1] for tensor in tensors))
    width = -(-widest // _ALIGNMENT) * _ALIGNMENT
    return tuple(F.pad(tensor, (0, width - tensor.shape[-1])) for tensor in tensors)


def _trimmed(padded: Tensor, like: Tensor) -> Tensor:
    """Drop padding; a copy, because a custom function must not return views."""
    width = like.shape[-1]
    return padded if padded.shape[-1] == width else padded[..., :width].clone()
