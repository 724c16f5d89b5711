"""Products with the Jacobian of any module at a batch of points, without forming it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["Jacobian", "inner", "norm", "per_sample"]

Batch = Float[Tensor, "batch *event"]


class Jacobian:
    """The Jacobian of a map at a batch of points, sample by sample.

    Everything here works on modules that were never written for it: reverse mode is plain autograd, and
    ``J v`` is computed by forward mode where every operation has it, else by differentiating reverse mode,
    else by central differences.

    Args:
        function: Map from ``(B, ...)`` to ``(B, ...)``, samples independent of each other.
        x: Points.

    Raises:
        ValueError: If the output does not depend on the input through autograd.

    Example:
        >>> J = Jacobian(torch.sin, torch.zeros(1, 2))
        >>> J.apply(torch.tensor([[1.0, 2.0]]))
        tensor([[1., 2.]])
    """

    def __init__(self, function: Callable[[Tensor], Tensor], x: Batch) -> None:
        self._function = function
        self._x = x.detach().requires_grad_()
        with torch.enable_grad():
            self._y = function(self._x)
        if not self._y.requires_grad:
            raise ValueError("the output is detached from the input: its derivative cannot be computed")
        self._methods = [self._forward_mode, self._double_reverse, self._central_difference]

    @property
    def value(self) -> Tensor:
        """The map's value at the points."""
        return self._y.detach()

    def apply(self, v: Batch) -> Tensor:
        """Return ``J v``."""
        while len(self._methods) > 1:
            try:
                return self._methods[0](v)
            except RuntimeError:  # an operation without this kind of derivative; the last method has none
                self._methods.pop(0)
        return self._methods[0](v)

    def apply_transpose(self, u: Tensor) -> Batch:
        """Return ``Jᵀ u``."""
        (product,) = torch.autograd.grad(self._y, self._x, u, retain_graph=True)
        return product

    def _forward_mode(self, v: Tensor) -> Tensor:
        with torch.no_grad(), forward_ad.dual_level():
            y = self._function(forward_ad.make_dual(self._x.detach(), v))
            tangent = forward_ad.unpack_dual(y).tangent
        return torch.zeros_like(y) if tangent is None else tangent

    def _double_reverse(self, v: Tensor) -> Tensor:
        u = torch.zeros_like(self._y, requires_grad=True)
        (product,) = torch.autograd.grad(self._y, self._x, u, create_graph=True)
        return torch.autograd.grad(product, u, v)[0]

    def _central_difference(self, v: Tensor) -> Tensor:
        # the step that balances truncation against rounding, relative to the size of the point
        x = self._x.detach()
        step = torch.finfo(v.dtype).eps ** (1 / 3) * (1 + norm(x)) / norm(v).clamp_min(1e-30)
        change = (per_sample(step, v) * v).to(v.dtype)
        with torch.no_grad():
            difference = self._function(x + change) - self._function(x - change)
        return (difference / per_sample(2 * step, difference)).to(difference.dtype)


def inner(a: Tensor, b: Tensor) -> Float[Tensor, " batch"]:
    """Return the inner product per sample, in ``float32`` or better."""
    dtype = torch.promote_types(a.dtype, torch.float32)
    return (a.to(dtype) * b.to(dtype)).flatten(1).sum(1)


def per_sample(values: Float[Tensor, " batch"], like: Tensor) -> Tensor:
    """Reshape one value per sample so that it broadcasts against a batch."""
    return values.reshape(-1, *(1,) * (like.ndim - 1))


def norm(a: Tensor) -> Float[Tensor, " batch"]:
    """Return the Euclidean norm per sample, in ``float32`` or better."""
    return inner(a, a).sqrt()
