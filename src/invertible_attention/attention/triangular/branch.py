r"""A residual branch that is invertible by order, whatever its weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from invertible_attention._mask import flat_mask
from invertible_attention.attention.branch import check_counts
from invertible_attention.attention.triangular.blockwise import Blockwise
from invertible_attention.attention.triangular.constraint import Triangular
from invertible_attention.attention.triangular.implicit import attach_gradient
from invertible_attention.attention.triangular.inverse import solve
from invertible_attention.attention.triangular.order import Layout, check_order
from invertible_attention.attention.triangular.strictness import check_strictly_causal
from invertible_attention.attention.triangular.transformer import CausalTransformer
from invertible_attention.bijection import refuse_unused
from invertible_attention.logdet import Exact, LogDetEstimator
from invertible_attention.solvers import FixedPoint, Solution, Solver, is_differentiated

__all__ = ["TriangularAttention", "TriangularBranch", "check_solver"]

Image = Float[Tensor, "batch channels *spatial"]


class TriangularBranch(nn.Module):
    r"""The branch :math:`g(x)_i = (e^{\alpha(x_{<i})} - 1)\, x_i + \mu(x_{<i})` of a residual block.

    The block :math:`z = x + g(x)` has a triangular Jacobian in the order, so it is a bijection with log-determinant
    :math:`\sum \alpha` (0 without :math:`\alpha`), and its inverse is found after at most as many evaluations as there
    are tokens. Nothing is promised about its Lipschitz constant, and nothing need be.

    Args:
        module: Maps images ``(B, C, *spatial)`` to :math:`\mu`, of the same shape, or with ``affine`` to
            :math:`\mu` and what :math:`\alpha` is made of, ``(B, 2C, *spatial)``. The outputs at a token may depend on
            tokens before it in the order only, such as those of a :class:`CausalTransformer` or of masked
            convolutions. If it has attributes ``uses_context`` or ``uses_mask`` that are true it is called as
            ``module(x, context, mask)``.
        order: See :class:`Triangular`.
        affine: Whether tokens are scaled.
        max_log_scale: Largest :math:`|\alpha|` of a value.
        shape: Shape ``(C, *spatial)`` of an image. Required for modules other than :class:`CausalTransformer`: it is
            tried on images of this shape whether the outputs at any token depend on it or a later one.
        context: A context ``(1, ...)`` for that trial, where the module uses one.

    Raises:
        ValueError: If an argument is outside its range, or the module sees a token that it must not see.

    Example:
        >>> import torch, invertible_attention as ia
        >>> from invertible_attention.attention import TriangularBranch
        >>> class Before(torch.nn.Module):
        ...     def forward(self, x):
        ...         return 3 * torch.nn.functional.pad(x[..., :-1], (1, 0)).sin()
        >>> layer = ia.flows.Residual(TriangularBranch(Before(), shape=(2, 5)))
        >>> x = torch.randn(4, 2, 5)
        >>> torch.allclose(layer.inverse(layer(x)), x, atol=1e-5)
        True
    """

    invertible_by_order = True

    def __init__(
        self,
        module: nn.Module,
        *,
        order: str | Sequence[int] = "raster",
        affine: bool = False,
        max_log_scale: float = 2.0,
        shape: Sequence[int] | None = None,
        context: Tensor | None = None,
    ) -> None:
        super().__init__()
        if not 0 < max_log_scale < float("inf"):
            raise ValueError(f"max_log_scale must be positive and finite, got {max_log_scale}")
        self.module = module
        self.order = check_order(order)
        self.affine, self.max_log_scale = affine, max_log_scale
        if isinstance(module, CausalTransformer):
            if module.order != self.order:
                raise ValueError(f"the transformer's order is {module.order!r}, got order={self.order!r}")
        elif shape is None:
            raise ValueError(
                "shape=(C, *spatial) is needed to check that the module is strictly causal, got None"
            )
        else:
            check_strictly_causal(module, self.order, tuple(shape), 1 + affine, context)

    @property
    def uses_context(self) -> bool:
        """Whether the module uses a context."""
        return bool(getattr(self.module, "uses_context", False))

    @property
    def uses_mask(self) -> bool:
        """Whether the module uses a mask."""
        return bool(getattr(self.module, "uses_mask", False))

    def extra_repr(self) -> str:
        """Return the arguments that are not modules."""
        return f"order={self.order!r}, affine={self.affine}"

    def coefficients(
        self, x: Image, context: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Image, Image | None]:
        r"""Return :math:`\mu` and :math:`\alpha`, which is ``None`` if tokens are not scaled; zero where not valid."""
        refuse_unused(self, context=context, mask=mask)
        args = (context, mask) if mask is not None else () if context is None else (context,)
        return self.split(self.module(x, *args), x, mask)

    def split(self, output: Tensor, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return μ and α from the module's output, whose second axis has those of the channels."""
        channels = x.shape[1]
        expected = (x.shape[0], (1 + self.affine) * channels, *x.shape[2:])
        if tuple(output.shape) != expected:
            raise ValueError(f"expected the module to return shape {expected}, got {tuple(output.shape)}")
        if mask is not None:
            valid = flat_mask(mask, x).view(x.shape[0], 1, *x.shape[2:])
            output = output.masked_fill(~valid, 0.0)
        if not self.affine:
            return output, None
        shift, raw = output.split(channels, 1)
        return shift, self.max_log_scale * torch.tanh(raw / self.max_log_scale)

    def forward(self, x: Image, context: Tensor | None = None, mask: Tensor | None = None) -> Image:
        """Return ``g(x)``, in float32 or better for a :class:`CausalTransformer`."""
        shift, log_scale = self.coefficients(x, context, mask)
        return _update(x, shift, log_scale)

    def forward_and_logdet(
        self, x: Image, context: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Image, Float[Tensor, " batch"]]:
        """Return ``g(x)`` and the log-determinant of ``x + g(x)``, exactly."""
        shift, log_scale = self.coefficients(x, context, mask)
        wide = torch.promote_types(shift.dtype, torch.float32)
        if log_scale is None:
            return shift, torch.zeros(len(x), dtype=wide, device=x.device)
        return _update(x, shift, log_scale), log_scale.to(wide).flatten(1).sum(1)

    def iterate(self, x: Image, z: Image, context: Tensor | None = None, mask: Tensor | None = None) -> Image:
        """Return the next iterate of the inverse at ``z``: after one per token it is the inverse."""
        shift, log_scale = self.coefficients(x, context, mask)
        return (z - shift if log_scale is None else (z - shift) * torch.exp(-log_scale)).to(z.dtype)

    def lipschitz_bound(self) -> Float[Tensor, ""]:
        """Infinity: the block is invertible by order, not because the branch is a contraction."""
        return torch.tensor(torch.inf)

    def default_solver(self) -> Solver:
        """Return the solver for a block that was given none."""
        return Blockwise()

    def default_logdet(self) -> LogDetEstimator:
        """Return what the log-determinant is: exact."""
        return Exact()

    def solve(self, z: Image, args: tuple[Tensor | None, ...], solver: Solver) -> Solution:
        """Solve ``x + g(x) = z``, differentiable to second order.

        Args:
            z: Right-hand sides.
            args: Context and mask, as they are passed to :meth:`forward`.
            solver: :class:`Blockwise`, or :class:`~invertible_attention.FixedPoint` for all tokens at once.

        Raises:
            ValueError: For another solver.
        """
        check_solver(solver)
        solution = solve(self, z, args, solver)
        if is_differentiated((z, *args, *self.parameters())):
            return attach_gradient(self, solution, z, args)
        return solution

    def layout(self, x: Image, mask: Bool[Tensor, "batch *spatial"] | None) -> Layout:
        """Return how the tokens of a batch follow each other."""
        return Layout.of(self.order, x, mask)


class TriangularAttention(TriangularBranch):
    """The branch of attention under :class:`Triangular`.

    Args:
        channels: Channels of a token.
        constraint: Order, form and size.
        heads: Number of heads; must divide the width.
        context_channels: Number of features of a context; ``None`` for none.
        **arguments: Others of the :class:`CausalTransformer`.

    Raises:
        TypeError: If channels or heads are not integers.
        ValueError: If an argument is outside its range.
    """

    def __init__(
        self,
        channels: int,
        constraint: Triangular,
        *,
        heads: int = 1,
        context_channels: int | None = None,
        **arguments: Any,
    ) -> None:
        check_counts(channels=channels, heads=heads, context_channels=context_channels or 0)
        if channels < 1:
            raise ValueError(f"channels must be at least 1, got {channels}")
        transformer = CausalTransformer(
            channels,
            (1 + constraint.affine) * channels,
            order=constraint.order,
            width=constraint.width,
            depth=constraint.depth,
            feed_forward=constraint.feed_forward,
            position=constraint.position,
            heads=heads,
            context_channels=context_channels,
            **arguments,
        )
        super().__init__(
            transformer,
            order=constraint.order,
            affine=constraint.affine,
            max_log_scale=constraint.max_log_scale,
        )
        self.channels, self.constraint = channels, constraint


def check_solver(solver: Solver) -> None:
    """Raise :class:`ValueError` for a solver that cannot use the order."""
    if not isinstance(solver, Blockwise | FixedPoint):
        # Mixing iterates, as Anderson does, takes as many evaluations: the error is nilpotent anyway.
        raise ValueError(
            f"a block that is invertible by order is solved by Blockwise or FixedPoint, got {solver}"
        )


def _update(x: Tensor, shift: Tensor, log_scale: Tensor | None) -> Tensor:
    return shift if log_scale is None else torch.expm1(log_scale) * x + shift
