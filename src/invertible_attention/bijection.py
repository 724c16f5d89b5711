"""The contract every invertible module of this library obeys."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from invertible_attention._initialize import initializing

__all__ = ["Bijection", "given", "refuse_unused"]

Event = Shaped[Tensor, "batch *event"]

_METHODS = ("forward", "inverse", "forward_and_logdet", "inverse_and_logdet", "solve_inverse")


class Bijection(nn.Module, ABC):
    r"""A differentiable map :math:`f` with an inverse and a log-determinant.

    Implementers write :meth:`forward_and_logdet` and :meth:`inverse_and_logdet`; :meth:`forward` and :meth:`inverse`
    drop the log-determinant, and are overridden where they are cheaper without it.

    Implementers **must**

    - map a batch ``(B, ...)`` to a batch ``(B, ...)``, every sample independently of the others (no batch
      statistics at the time of the call);
    - return log-determinants as :math:`\log|\det \partial f / \partial x|` per sample, shape ``(B,)``,
      attached to the autograd graph, in ``float32`` or better, **of the direction that was called**:
      :meth:`inverse_and_logdet` returns :math:`\log|\det \partial f^{-1}/\partial z|`, which is minus
      the forward one at the same point;
    - reproduce the input: ``inverse(forward(x)) == x`` to the tolerance they document, or raise
      :class:`~invertible_attention.ConvergenceError`. They never return a wrong answer in silence;
    - raise :class:`ValueError` with the offending shape or value for input they cannot take;
    - take ``context`` and ``mask`` as keywords only, and refuse one that they do not use.

    Implementers **may**

    - change the event shape, as :class:`~invertible_attention.flows.Squeeze` does;
    - return an unbiased *estimate* of the log-determinant, and say so;
    - use a ``context``, one entry per sample (first axis ``B``). Such a bijection sets :attr:`uses_context`.
      Chains pass a context to the parts that use one, and refuse it if none does;
    - use a ``mask``, true where the input of :meth:`forward` is valid: ``(B, *spatial)`` for events
      ``(C, *spatial)``, ``(B, D)`` for vectors, in either direction. Such a bijection sets :attr:`uses_mask`.
      What is not valid is returned as it is, is not seen by the rest, whatever it contains, and adds nothing
      to the log-determinant. One that changes the shape of an event overrides :meth:`output_mask`. Chains
      refuse a mask that a part of them cannot take.

    Attributes:
        uses_context: Whether the methods use a context.
        uses_mask: Whether the methods use a mask.

    Examples:
        >>> import math, torch, invertible_attention as ia
        >>> class Double(ia.Bijection):
        ...     def forward_and_logdet(self, x, *, context=None, mask=None):
        ...         return 2 * x, torch.full((len(x),), x[0].numel() * math.log(2))
        ...
        ...     def inverse_and_logdet(self, z, *, context=None, mask=None):
        ...         return z / 2, torch.full((len(z),), -z[0].numel() * math.log(2))
        >>> Double()(torch.ones(1, 2))
        tensor([[2., 2.]])
    """

    uses_context: bool = False
    uses_mask: bool = False

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        for name in _METHODS:
            if name in vars(cls):
                _require_keywords(cls, name)

    def forward(self, x: Event, *, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Return ``z = f(x)``."""
        return self.forward_and_logdet(x, **given(self, context=context, mask=mask))[0]

    def inverse(self, z: Event, *, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Return ``x`` such that ``f(x) = z``."""
        return self.inverse_and_logdet(z, **given(self, context=context, mask=mask))[0]

    @abstractmethod
    def forward_and_logdet(
        self, x: Event, *, context: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Float[Tensor, " batch"]]:
        """Return ``f(x)`` and ``log|det ∂f/∂x|`` per sample."""

    @abstractmethod
    def inverse_and_logdet(
        self, z: Event, *, context: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Float[Tensor, " batch"]]:
        """Return ``f⁻¹(z)`` and ``log|det ∂f⁻¹/∂z|`` per sample."""

    @torch.no_grad()
    def initialize(self, x: Event, *, context: Tensor | None = None, mask: Tensor | None = None) -> None:
        """Let every part that is set from data and is not set yet do so from ``x``, where it is valid.

        In evaluation mode too. In a process group the parts of this process alone are set: call it before
        :class:`torch.nn.parallel.DistributedDataParallel`, which gives every process what the first one has.
        """
        with initializing(self):
            self(x, **given(self, context=context, mask=mask))

    def output_mask(self, mask: Bool[Tensor, "batch *spatial"]) -> Bool[Tensor, "batch *output"]:
        """Return the mask of :meth:`forward`'s result for a mask of its input.

        Raises:
            ValueError: If the result would be valid in part.
        """
        return mask


def given(module: nn.Module, *, context: Tensor | None = None, mask: Tensor | None = None) -> dict[str, Any]:
    """Return the keyword arguments that pass a context and a mask on to a module: none for what is ``None``.

    Raises:
        ValueError: If the module does not use what there is.
    """
    refuse_unused(module, context=context, mask=mask)
    return {name: value for name, value in (("context", context), ("mask", mask)) if value is not None}


def refuse_unused(module: nn.Module, *, context: Tensor | None = None, mask: Tensor | None = None) -> None:
    """Raise :class:`ValueError` for a context or a mask that the module does not use."""
    for name, value in (("context", context), ("mask", mask)):
        if value is not None and not getattr(module, f"uses_{name}", False):
            shape = f"one of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
            raise ValueError(f"{type(module).__name__} takes no {name}, got {shape}")


def _require_keywords(cls: type, name: str) -> None:
    parameters = inspect.signature(getattr(cls, name)).parameters
    for argument in ("context", "mask"):
        if argument in parameters and parameters[argument].kind is not inspect.Parameter.KEYWORD_ONLY:
            point = list(parameters)[1]
            raise TypeError(
                f"{cls.__qualname__}.{name} takes {argument} by position, but it is passed as a keyword only: "
                f"write def {name}(self, {point}, *, context=None, mask=None)"
            )
