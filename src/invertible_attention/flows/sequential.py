"""Bijections one after another."""

from __future__ import annotations

from collections.abc import Iterator

from jaxtyping import Float, Shaped
from torch import Tensor, nn

from invertible_attention.bijection import Bijection

__all__ = ["Sequential"]


class Sequential(Bijection):
    r"""The composition :math:`f = f_n \circ \dots \circ f_1`; log-determinants add up.

    Args:
        *bijections: In the order they are applied forward. All receive the same ``context``.

    Raises:
        ValueError: If there is none, or one is not a :class:`Bijection`.

    Examples:
        >>> import torch
        >>> from invertible_attention.flows import Logit, Sequential, Squeeze
        >>> flow = Sequential(Logit(0.05), Squeeze(2))
        >>> flow(torch.rand(8, 3, 32, 32)).shape
        torch.Size([8, 12, 16, 16])
    """

    def __init__(self, *bijections: Bijection) -> None:
        super().__init__()
        if not bijections:
            raise ValueError("Sequential needs at least one bijection")
        for bijection in bijections:
            if not isinstance(bijection, Bijection):
                raise ValueError(f"expected a Bijection, got {type(bijection).__name__}")
        self.bijections = nn.ModuleList(bijections)

    def __len__(self) -> int:
        return len(self.bijections)

    def __iter__(self) -> Iterator[Bijection]:
        return iter(self.bijections)  # pyright: ignore[reportReturnType]

    def __getitem__(self, index: int) -> Bijection:
        return self.bijections[index]  # pyright: ignore[reportReturnType]

    def forward(self, x: Shaped[Tensor, "batch *event"], context: Tensor | None = None) -> Tensor:
        """Return ``z = f(x)``."""
        for bijection in self:
            x = bijection(x, context)
        return x

    def inverse(self, z: Shaped[Tensor, "batch *event"], context: Tensor | None = None) -> Tensor:
        """Return ``x`` such that ``f(x) = z``."""
        for bijection in reversed(list(self)):
            z = bijection.inverse(z, context)
        return z

    def forward_and_logdet(
        self, x: Shaped[Tensor, "batch *event"], context: Tensor | None = None
    ) -> tuple[Tensor, Float[Tensor, " batch"]]:
        """Return ``f(x)`` and ``log|det ∂f/∂x|`` per sample."""
        first, *others = self
        x, total = first.forward_and_logdet(x, context)
        for bijection in others:
            x, logdet = bijection.forward_and_logdet(x, context)
            total = total + logdet
        return x, total

    def inverse_and_logdet(
        self, z: Shaped[Tensor, "batch *event"], context: Tensor | None = None
    ) -> tuple[Tensor, Float[Tensor, " batch"]]:
        """Return ``f⁻¹(z)`` and ``log|det ∂f⁻¹/∂z|`` per sample."""
        first, *others = reversed(list(self))
        z, total = first.inverse_and_logdet(z, context)
        for bijection in others:
            z, logdet = bijection.inverse_and_logdet(z, context)
            total = total + logdet
        return z, total
