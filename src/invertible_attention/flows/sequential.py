"""Bijections one after another."""

from __future__ import annotations

from collections.abc import Iterator

from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from invertible_attention._mask import given
from invertible_attention.bijection import Bijection
from invertible_attention.lipschitz.together import constrained_together

__all__ = ["Sequential"]


class Sequential(Bijection):
    r"""The composition :math:`f = f_n \circ \dots \circ f_1`; log-determinants add up.

    Args:
        *bijections: In the order they are applied forward. All receive the same ``context``, and the mask of
            what they are applied to.

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
        self.uses_mask = all(bijection.uses_mask for bijection in bijections)

    def __len__(self) -> int:
        return len(self.bijections)

    def __iter__(self) -> Iterator[Bijection]:
        return iter(self.bijections)  # pyright: ignore[reportReturnType]

    def __getitem__(self, index: int) -> Bijection:
        return self.bijections[index]  # pyright: ignore[reportReturnType]

    def forward(
        self,
        x: Shaped[Tensor, "batch *event"],
        context: Tensor | None = None,
        *,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Return ``z = f(x)``."""
        with constrained_together(self):
            for bijection, keywords in self._given(mask):
                x = bijection(x, context, **keywords)
        return x

    def inverse(
        self,
        z: Shaped[Tensor, "batch *event"],
        context: Tensor | None = None,
        *,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Return ``x`` such that ``f(x) = z``."""
        for bijection, keywords in reversed(self._given(mask)):
            z = bijection.inverse(z, context, **keywords)
        return z

    def forward_and_logdet(
        self,
        x: Shaped[Tensor, "batch *event"],
        context: Tensor | None = None,
        *,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Float[Tensor, " batch"]]:
        """Return ``f(x)`` and ``log|det ∂f/∂x|`` per sample."""
        (first, keywords), *others = self._given(mask)
        with constrained_together(self):
            x, total = first.forward_and_logdet(x, context, **keywords)
            for bijection, keywords in others:
                x, logdet = bijection.forward_and_logdet(x, context, **keywords)
                total = total + logdet
        return x, total

    def inverse_and_logdet(
        self,
        z: Shaped[Tensor, "batch *event"],
        context: Tensor | None = None,
        *,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Float[Tensor, " batch"]]:
        """Return ``f⁻¹(z)`` and ``log|det ∂f⁻¹/∂z|`` per sample."""
        (first, keywords), *others = reversed(self._given(mask))
        z, total = first.inverse_and_logdet(z, context, **keywords)
        for bijection, keywords in others:
            z, logdet = bijection.inverse_and_logdet(z, context, **keywords)
            total = total + logdet
        return z, total

    def output_mask(self, mask: Bool[Tensor, "batch *spatial"]) -> Bool[Tensor, "batch *output"]:
        """Return the mask of ``f(x)``."""
        for bijection in self:
            mask = bijection.output_mask(mask)
        return mask

    def _given(self, mask: Tensor | None) -> list[tuple[Bijection, dict[str, Tensor]]]:
        """Return every part with the keyword arguments it is called with: the mask of its own input."""
        parts = []
        for bijection in self:
            parts.append((bijection, given(bijection, mask)))
            if mask is not None:
                mask = bijection.output_mask(mask)
        return parts
