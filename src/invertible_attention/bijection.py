"""The contract every invertible module of this library obeys."""

from __future__ import annotations

from abc import ABC, abstractmethod

from jaxtyping import Bool, Float
from torch import Tensor, nn

__all__ = ["Bijection"]


class Bijection(nn.Module, ABC):
    r"""A differentiable map :math:`f` with an inverse and a log-determinant.

    Implementers **must**

    - map a batch ``(B, ...)`` to a batch ``(B, ...)``, every sample independently of the others (no batch
      statistics at the time of the call);
    - return log-determinants as :math:`\log|\det \partial f / \partial x|` per sample, shape ``(B,)``,
      attached to the autograd graph, in ``float32`` or better, **of the direction that was called**:
      :meth:`inverse_and_logdet` returns :math:`\log|\det \partial f^{-1}/\partial z|`, which is minus
      the forward one at the same point;
    - reproduce the input: ``inverse(forward(x)) == x`` to the tolerance they document, or raise
      :class:`~invertible_attention.ConvergenceError`. They never return a wrong answer in silence;
    - raise :class:`ValueError` with the offending shape or value for input they cannot take.

    Implementers **may**

    - change the event shape, as :class:`~invertible_attention.flows.Squeeze` does;
    - return an unbiased *estimate* of the log-determinant, and say so;
    - use ``context``, one entry per sample (first axis ``B``). Those that do not use it ignore it;
    - take a keyword ``mask`` in all four methods, true where the input of :meth:`forward` is valid:
      ``(B, *spatial)`` for events ``(C, *spatial)``, ``(B, D)`` for vectors, in either direction. Such a
      bijection sets :attr:`uses_mask`. What is not valid is returned as it is, is not seen by the rest,
      whatever it contains, and adds nothing to the log-determinant. One that changes the shape of an
      event overrides :meth:`output_mask`. Chains refuse a mask that a part of them cannot take.

    Attributes:
        uses_mask: Whether the methods take a mask.
    """

    uses_mask: bool = False

    @abstractmethod
    def forward(self, x: Float[Tensor, "batch *event"], context: Tensor | None = None) -> Tensor:
        """Return ``z = f(x)``."""

    @abstractmethod
    def inverse(self, z: Float[Tensor, "batch *event"], context: Tensor | None = None) -> Tensor:
        """Return ``x`` such that ``f(x) = z``."""

    @abstractmethod
    def forward_and_logdet(
        self, x: Float[Tensor, "batch *event"], context: Tensor | None = None
    ) -> tuple[Tensor, Float[Tensor, " batch"]]:
        """Return ``f(x)`` and ``log|det ∂f/∂x|`` per sample."""

    @abstractmethod
    def inverse_and_logdet(
        self, z: Float[Tensor, "batch *event"], context: Tensor | None = None
    ) -> tuple[Tensor, Float[Tensor, " batch"]]:
        """Return ``f⁻¹(z)`` and ``log|det ∂f⁻¹/∂z|`` per sample."""

    def output_mask(self, mask: Bool[Tensor, "batch *spatial"]) -> Bool[Tensor, "batch *output"]:
        """Return the mask of :meth:`forward`'s result for a mask of its input.

        Raises:
            ValueError: If the result would be valid in part.
        """
        return mask
