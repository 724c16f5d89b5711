"""Export: modules with constraints baked in and inverses of a fixed number of steps, for other runtimes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from invertible_attention.attention import AttentionBranch
from invertible_attention.attention.frozen import FrozenAttentionBranch, bake_parametrizations
from invertible_attention.bijection import Bijection, Event, given
from invertible_attention.lipschitz.known import bound_function, doubt
from invertible_attention.residual import Residual

__all__ = ["CompiledBranch", "FixedInverse", "UnrolledResidual", "compile_branches", "to_plain"]


class UnrolledResidual(Residual):
    r"""A residual block whose inverse takes a fixed number of steps :math:`x \leftarrow z - g(x)`, unchecked.

    Without control flow that depends on data it can be exported. After :math:`n` steps the error is at most
    :math:`c^n \|x_0 - x^\star\|` with the certificate :math:`c`; nothing checks it at run time.

    Args:
        block: The block; its branch is shared, with constraints evaluated once.
        steps: Number of steps; ``None`` for one per token, after which a block that is invertible by order is
            inverted exactly.
    """

    def __init__(self, block: Residual, steps: int | None) -> None:
        super().__init__(block.branch, lipschitz=block.lipschitz, solver=block.solver, logdet=block.logdet)
        if steps is not None and steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        self.steps = steps

    def inverse(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, z: Event, *, context: Tensor | None = None, mask: Tensor | None = None
    ) -> Float[Tensor, "batch *event"]:
        """Return the last iterate."""
        branch, args = self._bind(), self._args(context, mask)
        step = getattr(branch, "iterate", lambda x, z, *args: (z - branch(x, *args)).to(z.dtype))
        x = z
        for _ in range(z.shape[2:].numel() if self.steps is None else self.steps):
            x = step(x, z, *args)
        return x


class FixedInverse(nn.Module):
    r"""The inverse of a bijection as the forward of a module, by a fixed number of steps per residual block.

    For :func:`torch.export.export`, :func:`torch.onnx.export` and ``torch.compile(..., fullgraph=True)``.

    Args:
        bijection: It is copied; constraints are baked in where that is possible.
        steps: Steps per block. ``None``: as many as the certificate says it takes to multiply the error of the
            first guess by ``tolerance``, :math:`\lceil \log \text{tolerance} / \log c \rceil`; one per token where a
            block is invertible by order.
        tolerance: See ``steps``.

    Raises:
        ValueError: If ``steps`` is ``None`` and a block is neither certified nor invertible by order.

    Example:
        >>> import torch, invertible_attention as ia
        >>> from invertible_attention.interop import FixedInverse
        >>> layer = ia.InvertibleAttention(4, "embedded_gaussian")
        >>> x = torch.randn(2, 4, 6)
        >>> z = layer(x)
        >>> torch.allclose(FixedInverse(layer)(z), x, atol=1e-5)
        True
    """

    def __init__(self, bijection: Bijection, steps: int | None = None, *, tolerance: float = 1e-6) -> None:
        super().__init__()
        if not 0 < tolerance < 1:
            raise ValueError(f"tolerance must be in (0, 1), got {tolerance}")

        def unroll(module: nn.Module) -> nn.Module:
            if not isinstance(module, Residual):
                return module
            return UnrolledResidual(module, steps or _steps_needed(module, tolerance))

        self.bijection = _replace(to_plain(bijection), unroll)

    def forward(
        self, z: Event, *, context: Tensor | None = None, mask: Tensor | None = None
    ) -> Float[Tensor, "batch *event"]:
        """Return the inverse at ``z``; the mask is as in :class:`~invertible_attention.Bijection`."""
        assert isinstance(self.bijection, Bijection)
        return self.bijection.inverse(z, **given(self.bijection, context=context, mask=mask))


class CompiledBranch(nn.Module):
    """A residual branch that is compiled where no gradient is wanted of it, as inside solvers.

    The constraint is computed apart from the evaluation, once per solve.

    Args:
        branch: The branch, with or without ``bind()``.
        **arguments: See :func:`torch.compile`.
    """

    def __init__(self, branch: nn.Module, **arguments: object) -> None:
        super().__init__()
        self.branch = branch
        self.uses_context = getattr(branch, "uses_context", False)
        self.uses_mask = getattr(branch, "uses_mask", False)
        self._run: Callable[..., Tensor] = torch.compile(_run, **arguments)  # pyright: ignore[reportCallIssue, reportArgumentType]

    def __getattr__(self, name: str) -> Any:
        # Layers ask their branch for the number of channels and the like.
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("branch"), name)

    def bind(self) -> Callable[..., Tensor]:
        """Compute the constrained weights once; return the branch as a function of ``x``."""
        # A compiled call does not run the hooks of the branch.
        if torch.is_grad_enabled() or doubt(self.branch, parts=False, promises=()):
            return bound_function(self.branch)
        return _CompiledEvaluation(bound_function(self.branch), self)

    def forward(self, x: Tensor, *args: Tensor | None) -> Tensor:
        """Return ``g(x)``."""
        return self.branch(x, *args)

    def lipschitz_bound(self) -> Float[Tensor, ""]:
        """Bound of the branch."""
        return Residual(self.branch).lipschitz_bound()


class _CompiledEvaluation:
    """A branch whose weights are computed, compiled; it offers what the branch does."""

    def __init__(self, bound: Callable[..., Tensor], compiled: CompiledBranch) -> None:
        self._bound, self._compiled = bound, compiled

    def __call__(self, *args: Tensor | None) -> Tensor:
        return self._compiled._run(self._bound, *args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bound, name)


def compile_branches(bijection: Bijection, **arguments: object) -> Bijection:
    """Return a copy of a bijection whose solvers evaluate compiled branches.

    A solver decides sample by sample when to stop, which no compiler captures; what it evaluates again and again
    is compiled instead.

    Args:
        bijection: After its first batch.
        **arguments: See :func:`torch.compile`.
    """

    def compiled(module: nn.Module) -> nn.Module:
        if isinstance(module, Residual):
            module.branch = CompiledBranch(module.branch, **arguments)
        return module

    return _as_bijection(_replace(copy.deepcopy(bijection), compiled))


def to_plain(bijection: Bijection) -> Bijection:
    """Return an equivalent copy with the constraints baked into ordinary weights.

    Parametrizations are replaced by their present values, and attention loses its bound and its scale: nothing is
    computed at run time but the map itself. Blocks keep the bound they had, for their inverses, as a number.
    Where the scale of attention depends on how many tokens there are or which are seen
    (``normalization="all"``, context tokens with column normalization, a position prior), the norms it is computed
    from become numbers.

    Args:
        bijection: After its first batch.

    Raises:
        ValueError: If attention has not seen its first batch.

    Example:
        >>> import torch, invertible_attention as ia
        >>> from invertible_attention.interop import to_plain
        >>> layer = ia.InvertibleAttention(4)
        >>> x = torch.randn(2, 4, 6)
        >>> torch.allclose(layer(x), to_plain(layer)(x), atol=1e-6)
        True
    """

    def plain(module: nn.Module) -> nn.Module:
        if not isinstance(module, Residual):
            return module
        bound = module.lipschitz_bound().item()
        branch = module.branch
        if isinstance(branch, AttentionBranch):
            branch = FrozenAttentionBranch(branch)
        return Residual(branch, lipschitz=bound, solver=module.solver, logdet=module.logdet).train(
            module.training
        )

    return _as_bijection(bake_parametrizations(_replace(copy.deepcopy(bijection), plain)))


def _run(bound: Callable[..., Tensor], *arguments: Tensor | None) -> Tensor:
    return bound(*arguments)


def _steps_needed(block: Residual, tolerance: float) -> int | None:
    if getattr(block.branch, "invertible_by_order", False):
        return None
    bound = block.lipschitz_bound().item()
    if not bound < 1:
        raise ValueError(f"the block is not certified (Lipschitz bound {bound}): give the number of steps")
    return max(1, math.ceil(math.log(tolerance) / math.log(bound))) if bound > 0 else 1


def _replace(module: nn.Module, change: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """Replace modules from the leaves up."""
    for name, child in list(module.named_children()):
        setattr(module, name, _replace(child, change))
    return change(module)


def _as_bijection(module: nn.Module) -> Bijection:
    assert isinstance(module, Bijection)
    return module
