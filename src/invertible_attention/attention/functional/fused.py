"""Attention through fused kernels: what any of them needs to be differentiated to any order, batched and traced.

A kernel computes products with a row-normalized matrix :math:`P`, and with its transpose. Its derivatives are computed
strip by strip, in O(N) memory and to any order, unless it brings gradients of its own; then the second derivatives
are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from invertible_attention.attention.functional.blocked import map_strips
from invertible_attention.attention.functional.precision import accurate
from invertible_attention.attention.functional.products import Adjoint, Apply, Gradient
from invertible_attention.attention.functional.strips import StripFunction
from invertible_attention.attention.functional.weighting import Weighting

__all__ = ["Kernel", "attend", "fold_vmap"]

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
        raise TypeError(f"{type(self).__name__} has no gradients of its own")


def attend(
    query: Float[Tensor, "batch heads queries dim"],
    key: Float[Tensor, "batch heads keys dim"],
    value: Float[Tensor, "batch heads keys features"],
    kernel: Kernel,
    normalization: str,
) -> Float[Tensor, "batch heads queries features"]:
    """Multiply the values by the response matrix.

    Args:
        query: queries.
        key: keys.
        value: values.
        kernel: computes the products; ``"all"`` needs one that returns the logarithms of its sums.
        normalization: ``"column"``, ``"row"`` or ``"all"``.

    Returns:
        One row per query.
    """
    if normalization == "column":
        return _Adjoint.apply(key, value, query, kernel)  # type: ignore[return-value]
    if normalization == "row":
        return _Product.apply(query, key, value, None, kernel)[0]  # type: ignore[index]
    reference = kernel.reference(query, key)
    product, log_total = _Product.apply(query, key, value, reference, kernel)  # type: ignore[misc]
    share = torch.softmax(accurate(reference) + accurate(log_total), -2)
    return product * share.to(product.dtype)


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
