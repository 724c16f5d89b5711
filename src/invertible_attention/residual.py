"""The residual block ``x + g(x)``: forward, inverse and log-determinant for any branch ``g``."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from invertible_attention._differentiation import functional_transforms_active
from invertible_attention._mapped import is_mapped, outside_vmap, plain
from invertible_attention._mask import valid_values
from invertible_attention.bijection import Bijection, refuse_unused
from invertible_attention.lipschitz.bind import is_bound
from invertible_attention.lipschitz.known import bound_function, doubt
from invertible_attention.lipschitz.module_bound import lipschitz_upper_bound
from invertible_attention.logdet import LogDetEstimator, RussianRoulette
from invertible_attention.solvers import (
    Anderson,
    ConvergenceError,
    Solution,
    Solver,
    implicit_gradient,
    is_differentiated,
)

__all__ = ["Residual", "require_tensor"]

Batch = Float[Tensor, "batch *event"]


class Residual(Bijection):
    r"""The residual block :math:`f(x) = x + g(x)`, invertible where :math:`g` is a contraction.

    A branch whose Lipschitz constant is below 1 is certified: the inverse exists, the solver converges to it and
    ``error_bound`` bounds the distance to it. Without a certificate nothing is promised, but nothing is hidden
    either: the inverse is checked per sample.

    Args:
        branch: :math:`g`, mapping ``(B, ...)`` to the same shape, samples independent of each other. If it has an
            attribute ``uses_context`` that is true it is called as ``branch(x, context)``; if ``uses_mask`` is
            true, as ``branch(x, context, mask)`` where a mask is given. One that knows the inverse of the block and
            its log-determinant has methods ``solve`` and ``forward_and_logdet``, as
            :class:`~invertible_attention.attention.TriangularBranch` does. Where its weights are constrained they are
            computed once for a solve or a pass, and hooks inside are called with a copy that holds them.
        lipschitz: Upper bound of the Lipschitz constant of :math:`g`, where it is known from elsewhere. By default
            it is the branch's own ``lipschitz_bound()``, or is computed from its layers
            (:func:`~invertible_attention.lipschitz.lipschitz_upper_bound`), or is ``inf``.
        solver: Solves :math:`x + g(x) = z`; default :class:`~invertible_attention.Anderson`.
        logdet: Estimates :math:`\log\det(I + J_g)`; default ``RussianRoulette(seed=0)``, unbiased, and the same for the
            same batch in evaluation.

    Raises:
        ValueError: If ``lipschitz`` is negative, or ``solver`` or ``logdet`` is something else.

    Example:
        >>> import torch, invertible_attention as ia
        >>> block = ia.flows.Residual(torch.nn.Linear(3, 3), lipschitz=None).double()
        >>> with torch.no_grad():
        ...     _ = block.branch.weight.copy_(0.5 * torch.eye(3))
        >>> x = torch.ones(2, 3, dtype=torch.float64)
        >>> torch.allclose(block.inverse(block(x)), x)
        True
    """

    def __init__(
        self,
        branch: nn.Module,
        *,
        lipschitz: float | None = None,
        solver: Solver | None = None,
        logdet: LogDetEstimator | None = None,
    ) -> None:
        super().__init__()
        if lipschitz is not None and not lipschitz >= 0:
            raise ValueError(f"lipschitz must not be negative, got {lipschitz}")
        if not isinstance(solver, Solver | None):
            raise ValueError(f"solver must be an object such as Anderson(), got {solver!r}")
        if not isinstance(logdet, LogDetEstimator | None):
            raise ValueError(f"logdet must be an object such as RussianRoulette(), got {logdet!r}")
        self.branch = branch
        self.lipschitz = lipschitz
        self.solver = getattr(branch, "default_solver", Anderson)() if solver is None else solver
        default = getattr(branch, "default_logdet", partial(RussianRoulette, seed=0))
        self.logdet = default() if logdet is None else logdet

    @property
    def uses_context(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the branch uses a context."""
        return bool(getattr(self.branch, "uses_context", False))

    @property
    def uses_mask(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the branch uses a mask."""
        return bool(getattr(self.branch, "uses_mask", False))

    def check_input(self, x: Tensor) -> None:
        """Raise :class:`TypeError` for anything but a tensor, :class:`ValueError` for one the block cannot take."""
        require_tensor(x)
        if x.dim() < 2 or x.shape[0] == 0:
            raise ValueError(f"expected a non-empty batch (B, ...), got shape {tuple(x.shape)}")
        if not x.is_floating_point():
            raise ValueError(f"expected a floating-point tensor, got {x.dtype}")

    def lipschitz_bound(self) -> Float[Tensor, ""]:
        """Upper bound of the Lipschitz constant of the branch; ``inf`` where nothing is promised."""
        return self._bound_of(self.branch)

    def _bound_of(self, branch: Callable[..., Tensor]) -> Float[Tensor, ""]:
        if self.lipschitz is not None:
            return torch.tensor(self.lipschitz)
        # Hooks of the block are outside of what its branch computes.
        if doubt(self, parts=False):
            return torch.tensor(torch.inf)
        if isinstance(branch, nn.Module):
            return lipschitz_upper_bound(branch)
        own = getattr(branch, "lipschitz_bound", None)
        return lipschitz_upper_bound(self.branch) if own is None or doubt(self.branch) else own()

    def forward(self, x: Batch, *, context: Tensor | None = None, mask: Tensor | None = None) -> Batch:
        """Return ``x + g(x)``.

        Args:
            x: Where to evaluate.
            context: One entry per sample, for a branch that uses one.
            mask: True at valid positions, for a branch that uses one. The others are returned as they are, and
                count as such in the log-determinant.

        Raises:
            ValueError: For input the block cannot take, and for a context or a mask that the branch does not use.
        """
        self.check_input(x)
        return _add(x, self.branch(x, *self._args(context, mask)))

    def inverse(
        self,
        z: Batch,
        *,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        strict: bool = True,
    ) -> Batch:
        """Return ``x`` with ``x + g(x) = z``, differentiable by the implicit function theorem.

        Args:
            z: What :meth:`forward` returned.
            context: As in :meth:`forward`.
            mask: As in :meth:`forward`.
            strict: Whether to raise when a sample does not converge; otherwise a warning is given and the best
                iterate found is returned.

        Raises:
            ConvergenceError: Naming the samples that did not converge; the solution found is in ``.solution``.
        """
        solution = self.solve_inverse(z, context=context, mask=mask)
        if not bool(plain(solution.converged).all()):
            error = ConvergenceError(solution)
            if strict:
                raise error
            warnings.warn(str(error), RuntimeWarning, stacklevel=2)
        return solution.value

    def solve_inverse(
        self, z: Batch, *, context: Tensor | None = None, mask: Tensor | None = None
    ) -> Solution:
        """Solve ``x + g(x) = z`` and say per sample how it went; never raises for lack of convergence."""
        self.check_input(z)
        args = self._args(context, mask)
        if mask is not None:
            return self._solve_valid(z, context, mask)
        self._initialize(z, mask)
        return self._solve(z, args)

    def _solve_valid(self, z: Batch, context: Tensor | None, mask: Tensor) -> Solution:
        # Padding is not part of the problem: its size would enter the relative residual.
        valid = valid_values(mask, z)
        self._initialize(z, mask)
        solution = self._solve(z.masked_fill(~valid, 0.0), self._args(context, mask))
        return replace(solution, value=torch.where(valid, solution.value, z))

    def _solve(self, z: Batch, args: tuple[Tensor | None, ...]) -> Solution:
        if functional_transforms_active():
            state = (*self.branch.parameters(), *self.branch.buffers())
            if is_mapped((z, *args, *state)):
                return self._solve_mapped(z, args)
        own = self._own("solve")
        if own is not None:
            return own(z, args, self.solver)
        branch, bound = self._constrained()
        solution = self.solver.solve(branch, z, args, lipschitz=bound)
        if not self._needs_gradient(z, args):
            return solution
        value = implicit_gradient(branch, solution.value, z, args, solver=self.solver)
        return replace(solution, value=value)

    def _solve_mapped(self, z: Batch, args: tuple[Tensor | None, ...]) -> Solution:
        with torch.no_grad():
            solution = outside_vmap(lambda z, *args: self._solve(z, args), z, *args, module=self.branch)
        if not self._needs_gradient(z, args):
            return solution
        if self._own("solve") is not None:
            raise RuntimeError(
                "the inverse of a block that is invertible by order has no gradient inside torch.func.vmap: call it "
                "under torch.no_grad(), or on one batch: layer.inverse(z.flatten(0, 1)).unflatten(0, z.shape[:2])"
            )
        value = implicit_gradient(self._bind(), solution.value, z, args, solver=self.solver)
        return replace(solution, value=value)

    def forward_and_logdet(
        self, x: Batch, *, context: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Batch, Float[Tensor, " batch"]]:
        """Return ``x + g(x)`` and the log-determinant (or an estimate, as :attr:`logdet` does it)."""
        self.check_input(x)
        update, logdet = self._logdet(x, context, mask)
        return _add(x, update), logdet

    def inverse_and_logdet(
        self, z: Batch, *, context: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Batch, Float[Tensor, " batch"]]:
        """Return the inverse and minus the log-determinant at it. Raises as :meth:`inverse` does."""
        block = self._with_computed_weights()
        x = block.inverse(z, context=context, mask=mask)
        _, logdet = block._logdet(x, context, mask)
        return x, -logdet

    def _with_computed_weights(self) -> Residual:
        """Return the block with its weights computed, to be evaluated more than once."""
        if is_bound(self.branch):
            return self
        from invertible_attention.flows.bound import bound_blocks

        return cast(Residual, bound_blocks([self])[0])

    def _logdet(self, x: Batch, context: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        own = self._own("forward_and_logdet")
        if own is not None:
            return own(x, *self._args(context, mask))
        self._initialize(x, mask)
        # Bound, so that a memory-saving backward evaluates the branch again but not the constraint.
        branch, bound = self._constrained()
        return self.logdet(
            branch,
            x,
            self._args(context, mask),
            # Backward ends at weights that were computed already: what is behind them may be shared with other blocks.
            parameters=tuple((branch if isinstance(branch, nn.Module) else self.branch).parameters()),
            lipschitz=bound,
            training=self.training,
        )

    def _own(self, method: str) -> Callable[..., Any] | None:
        """Return a method of the branch that stands for calls of it, where a call computes what it was written for."""
        if not hasattr(type(self.branch), method):
            return None
        if not torch.compiler.is_compiling() and doubt(self.branch, parts=False, promises=(method,)):
            return None
        return getattr(self.branch, method)

    def _initialize(self, batch: Tensor, mask: Tensor | None) -> None:
        if getattr(self.branch, "_is_replica", False) and torch.is_grad_enabled():
            raise RuntimeError(
                "a replica of nn.DataParallel has no parameters, so gradients of inverses and log-determinants "
                "would be lost: use DistributedDataParallel"
            )
        # In either direction: x and z = x + g(x) are of the same scale.
        require = getattr(self.branch, "require_initialized", None)
        if require is not None and not is_bound(self.branch):
            require(batch, mask)

    def _constrained(self) -> tuple[Callable[..., Tensor], Float[Tensor, ""]]:
        """Return the branch with its weights computed, and its bound: they come from the same norms."""
        branch = self._bind()
        overridden = type(self).lipschitz_bound is not Residual.lipschitz_bound
        return branch, self.lipschitz_bound() if overridden else self._bound_of(branch)

    def _bind(self) -> Callable[..., Tensor]:
        return bound_function(self.branch)

    def _args(self, context: Tensor | None, mask: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_unused(self, context=context, mask=mask)
        if mask is None:
            return () if context is None else (context,)
        return context, mask

    def _needs_gradient(self, z: Tensor, args: tuple[Tensor | None, ...]) -> bool:
        return is_differentiated((z, *args, *self.branch.parameters()))


def require_tensor(x: object) -> None:
    """Raise :class:`TypeError` for anything but a tensor, such as a NumPy array."""
    if not isinstance(x, Tensor):
        raise TypeError(f"expected a tensor, got {type(x).__name__}")


def _add(x: Tensor, update: Tensor) -> Tensor:
    # In low precision the sum is rounded once, not the branch first.
    return (x + update).to(x.dtype)
