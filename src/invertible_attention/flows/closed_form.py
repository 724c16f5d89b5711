"""Base class of bijections whose inverse and log-determinant have a closed form."""

from __future__ import annotations

from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from invertible_attention.bijection import Bijection, Event, refuse_unused

__all__ = ["ClosedForm"]


class ClosedForm(Bijection):
    """A bijection without a context whose log-determinant is known from its result.

    Subclasses write :meth:`_forward`, :meth:`_inverse` and, unless they only rearrange values, :meth:`_logdet`.
    """

    uses_mask = True

    def forward(self, x: Event, *, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Return ``z = f(x)``."""
        refuse_unused(self, context=context, mask=mask)
        return self._forward(x, mask)

    def inverse(self, z: Event, *, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Return ``x`` such that ``f(x) = z``."""
        refuse_unused(self, context=context, mask=mask)
        return self._inverse(z, mask)

    def forward_and_logdet(
        self, x: Event, *, context: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Float[Tensor, " batch"]]:
        """Return ``f(x)`` and ``log|det ∂f/∂x|`` per sample."""
        z = self.forward(x, context=context, mask=mask)
        return z, self._logdet(z, mask)

    def inverse_and_logdet(
        self, z: Event, *, context: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Float[Tensor, " batch"]]:
        """Return ``f⁻¹(z)`` and ``log|det ∂f⁻¹/∂z|`` per sample."""
        return self.inverse(z, context=context, mask=mask), -self._logdet(z, mask)

    @abstractmethod
    def _forward(self, x: Tensor, mask: Tensor | None) -> Tensor: ...

    @abstractmethod
    def _inverse(self, z: Tensor, mask: Tensor | None) -> Tensor: ...

    def _logdet(self, z: Tensor, mask: Tensor | None) -> Float[Tensor, " batch"]:
        """Return the log-determinant of the forward direction from its result, zero by default."""
        return torch.zeros(len(z), dtype=torch.promote_types(z.dtype, torch.float32), device=z.device)
