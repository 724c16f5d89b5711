"""Bijections one after another."""

from __future__ import annotations

from collections.abc import Iterator

from jaxtyping import Bool, Float
from torch import Tensor, nn

from invertible_attention.bijection import Bijection, Event, given, refuse_unused
from invertible_attention.flows.bound import bound_blocks

__all__ = ["Sequential"]


class Sequential(Bijection):
    r"""The composition :math:`f = f_n \circ \dots \circ f_1`; log-determinants add up.

    Args:
        *bijections: In the order they are applied forward. Those that use a context receive the chain's; all
            receive the mask of what they are applied to.

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

    @property
    def uses_context(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether any of the bijections uses a context."""
        return any(bijection.uses_context for bijection in self)

    @property
    def uses_mask(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether all of the bijections use a mask."""
        return all(bijection.uses_mask for bijection in self)

    def forward(self, x: Event, *, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Return ``z = f(x)``."""
        for bijection, keywords in self._given(context, mask):
            x = bijection(x, **keywords)
        return x

    def inverse(self, z: Event, *, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Return ``x`` such that ``f(x) = z``."""
        for bijection, keywords in reversed(self._given(context, mask)):
            z = bijection.inverse(z, **keywords)
        return z

    def forward_and_logdet(
        self, x: Event, *, context: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Float[Tensor, " batch"]]:
        """Return ``f(x)`` and ``log|det ∂f/∂x|`` per sample."""
        (first, keywords), *others = self._given(context, mask)
        x, total = first.forward_and_logdet(x, **keywords)
        for bijection, keywords in others:
            x, logdet = bijection.forward_and_logdet(x, **keywords)
            total = total + logdet
        return x, total

    def inverse_and_logdet(
        self, z: Event, *, context: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Float[Tensor, " batch"]]:
        """Return ``f⁻¹(z)`` and ``log|det ∂f⁻¹/∂z|`` per sample."""
        (first, keywords), *others = reversed(self._given(context, mask))
        z, total = first.inverse_and_logdet(z, **keywords)
        for bijection, keywords in others:
            z, logdet = bijection.inverse_and_logdet(z, **keywords)
            total = total + logdet
        return z, total

    def output_mask(self, mask: Bool[Tensor, "batch *spatial"]) -> Bool[Tensor, "batch *output"]:
        """Return the mask of ``f(x)``."""
        for bijection in self:
            mask = bijection.output_mask(mask)
        return mask

    def _given(
        self, context: Tensor | None, mask: Tensor | None
    ) -> list[tuple[Bijection, dict[str, Tensor]]]:
        """Return every part with the keyword arguments it is called with: the mask of its own input.

        The constraints of all blocks are evaluated, together and once for the pass.
        """
        refuse_unused(self, context=context)
        parts = []
        for bijection in bound_blocks(list(self)):
            theirs = context if context is not None and bijection.uses_context else None
            parts.append((bijection, given(bijection, context=theirs, mask=mask)))
            if mask is not None:
                mask = bijection.output_mask(mask)
        return parts
