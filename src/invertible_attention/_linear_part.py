"""A linear map near a branch's Jacobian, for the inverse and for the log-determinant alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from jaxtyping import Float
from torch import Tensor

__all__ = ["LinearPart", "linear_part_of"]


class LinearPart(Protocol):
    r"""A linear map :math:`J_0` near the Jacobian of a branch, such as the mean field of attention.

    Its norm must not exceed the branch's Lipschitz constant, so that what converges for :math:`J` does for it. One
    that can come nearer to :math:`(I + J)^{-1}` than :meth:`solve` has a method ``precondition`` of the same form for
    solvers.
    """

    def apply(self, v: Tensor, *, transposed: bool = False) -> Tensor:
        """Return ``J₀ v``, or ``J₀ᵀ v``."""
        ...

    def solve(self, r: Tensor, *, transposed: bool = False) -> Tensor:
        """Return ``(I + J₀)⁻¹ r``, or ``(I + J₀)⁻ᵀ r``."""
        ...

    def log_determinant(self) -> Float[Tensor, "batch_or_one"]:
        """Return ``log |det(I + J₀)|``."""
        ...


def linear_part_of(
    branch: Callable[..., Tensor], x: Tensor, args: Sequence[Tensor | None]
) -> LinearPart | None:
    """Return the linear part of a branch at a point, if it offers one."""
    offered = getattr(branch, "linear_part", None)
    return None if offered is None else offered(x, *args)
