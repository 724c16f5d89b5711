"""What a branch knows of the inverse of ``I + J`` at a point, for solvers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from invertible_attention._linear_part import LinearPart, linear_part_of

__all__ = ["Preconditioner", "gather"]


class Preconditioner:
    """About ``(I + J)^-1`` at a point, by the linear part of a branch there, or else by its own ``precondition``.

    Args:
        branch: the callable ``g(x, *args)``.
        point: where.
        args: further arguments of the branch.
    """

    def __init__(
        self,
        branch: Callable[..., Tensor],
        point: Float[Tensor, "batch *event"],
        args: Sequence[Tensor | None],
    ) -> None:
        self._branch, self._point, self._args = branch, point, args
        self._samples: Tensor | None = None
        self._part: LinearPart | None = None
        self._computed = False

    @staticmethod
    def known(branch: Callable[..., Tensor]) -> bool:
        """Whether a branch has one."""
        return hasattr(branch, "linear_part") or hasattr(branch, "precondition")

    def __call__(
        self,
        residual: Float[Tensor, "rows *event"],
        samples: Int[Tensor, " rows"] | None = None,
        *,
        transposed: bool = False,
        fixed: bool = False,
    ) -> Float[Tensor, "rows *event"]:
        """Return about ``(I + J)^-1 residual``; the residual itself where nothing is known.

        Args:
            residual: what to multiply.
            samples: which samples its rows are; ``None`` for all.
            transposed: whether to return about ``(I + J)^-T residual``.
            fixed: whether it must be linear in the residual, not a little nearer.
        """
        if hasattr(self._branch, "linear_part"):
            part = self._part_of(samples)
            if part is None:
                return residual
            solve = part.solve if fixed else getattr(part, "precondition", part.solve)
            return solve(residual, transposed=transposed)
        if not hasattr(self._branch, "precondition"):
            return residual
        args = self._args if samples is None else gather(self._args, samples)
        options = {"transposed": True} if transposed else {}
        return self._branch.precondition(residual, *args, **options)  # pyright: ignore[reportFunctionMemberAccess]

    def _part_of(self, samples: Tensor | None) -> LinearPart | None:
        """Return the linear part of some samples, computed again only when they are others."""
        before = self._samples
        same = samples is before or (
            samples is not None and before is not None and torch.equal(samples, before)
        )
        if not self._computed or not same:
            point, args = self._point, self._args
            if samples is not None:
                point, args = point[samples], gather(args, samples)
            self._part = linear_part_of(self._branch, point, args)
            self._samples, self._computed = samples, True
        return self._part


def gather(args: Sequence[Tensor | None], samples: Int[Tensor, " rows"]) -> tuple[Tensor | None, ...]:
    """Return the arguments of some samples."""
    return tuple(arg if arg is None else arg[samples] for arg in args)
