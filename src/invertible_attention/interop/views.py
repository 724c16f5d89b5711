"""Bijections that adapters need around others: another direction, and events seen as vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from invertible_attention.bijection import Bijection

__all__ = ["Inverse", "OnVectors", "on_vectors"]


class Inverse(Bijection):
    r"""The inverse of a bijection, :math:`f^{-1}`, as a bijection.

    Flow libraries differ in the direction they call forward, and a density that is trained by sampling wants the
    cheap direction to be the one from latent to data.

    Args:
        bijection: :math:`f`.

    Example:
        >>> import torch, invertible_attention as ia
        >>> from invertible_attention.interop import Inverse
        >>> f = ia.flows.Logit(0.05)
        >>> x = torch.tensor([[0.25]])
        >>> torch.allclose(Inverse(f)(f(x)), x)
        True
    """

    def __init__(self, bijection: Bijection) -> None:
        super().__init__()
        self.bijection = bijection

    def forward(self, x: Float[Tensor, "batch *event"], context: Tensor | None = None) -> Tensor:
        """Return ``f⁻¹(x)``."""
        return self.bijection.inverse(x, context)

    def inverse(self, z: Float[Tensor, "batch *event"], context: Tensor | None = None) -> Tensor:
        """Return ``f(z)``."""
        return self.bijection(z, context)

    def forward_and_logdet(
        self, x: Float[Tensor, "batch *event"], context: Tensor | None = None
    ) -> tuple[Tensor, Float[Tensor, " batch"]]:
        """Return ``f⁻¹(x)`` and its log-determinant."""
        return self.bijection.inverse_and_logdet(x, context)

    def inverse_and_logdet(
        self, z: Float[Tensor, "batch *event"], context: Tensor | None = None
    ) -> tuple[Tensor, Float[Tensor, " batch"]]:
        """Return ``f(z)`` and its log-determinant."""
        return self.bijection.forward_and_logdet(z, context)


class OnVectors(Bijection):
    """A bijection of images or sequences, applied to vectors ``(B, D)`` that hold them.

    Args:
        bijection: Maps events of shape ``view`` to events.
        view: Shape ``(C, *spatial)`` a vector is viewed as, row-major.
        output_view: Shape of the bijection's result where it is another one.

    Raises:
        ValueError: If the two shapes do not hold the same number of values; in a call, if a vector does not.

    Example:
        >>> import torch, invertible_attention as ia
        >>> from invertible_attention.interop import OnVectors
        >>> layer = OnVectors(ia.InvertibleAttention(3), (3, 4))
        >>> layer(torch.randn(5, 12)).shape
        torch.Size([5, 12])
    """

    def __init__(
        self, bijection: Bijection, view: Sequence[int], output_view: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.bijection = bijection
        self.view = tuple(view)
        self.output_view = self.view if output_view is None else tuple(output_view)
        if math.prod(self.view) != math.prod(self.output_view):
            raise ValueError(f"views {self.view} and {self.output_view} differ in size")

    def extra_repr(self) -> str:
        """Return the arguments that are not modules."""
        return str(self.view) if self.view == self.output_view else f"{self.view}, {self.output_view}"

    def forward(self, x: Float[Tensor, "batch dim"], context: Tensor | None = None) -> Tensor:
        """Return ``(B, D)``."""
        return self.bijection(_view(x, self.view), context).flatten(1)

    def inverse(self, z: Float[Tensor, "batch dim"], context: Tensor | None = None) -> Tensor:
        """Return ``(B, D)``."""
        return self.bijection.inverse(_view(z, self.output_view), context).flatten(1)

    def forward_and_logdet(
        self, x: Float[Tensor, "batch dim"], context: Tensor | None = None
    ) -> tuple[Tensor, Float[Tensor, " batch"]]:
        """Return ``(B, D)`` and the log-determinant."""
        z, logdet = self.bijection.forward_and_logdet(_view(x, self.view), context)
        return z.flatten(1), logdet

    def inverse_and_logdet(
        self, z: Float[Tensor, "batch dim"], context: Tensor | None = None
    ) -> tuple[Tensor, Float[Tensor, " batch"]]:
        """Return ``(B, D)`` and the log-determinant of the inverse."""
        x, logdet = self.bijection.inverse_and_logdet(_view(z, self.output_view), context)
        return x.flatten(1), logdet


def on_vectors(bijection: Bijection, view: Sequence[int] | None) -> Bijection:
    """Return the bijection itself, or seen through ``view``.

    Raises:
        ValueError: If it is not a bijection.
    """
    if not isinstance(bijection, Bijection):
        raise ValueError(f"expected a Bijection, got {type(bijection).__name__}")
    return bijection if view is None else OnVectors(bijection, view)


def sum_over_event(values: Tensor, batch: int) -> Float[Tensor, " batch"]:
    """Sum a log-determinant over every axis but the first, in ``float32`` or better; scalars are repeated."""
    wide = values.to(torch.promote_types(values.dtype, torch.float32))
    return wide.expand(batch) if wide.ndim == 0 else wide.reshape(batch, -1).sum(1)


def _view(x: Tensor, view: tuple[int, ...]) -> Tensor:
    if x.ndim != 2 or x.shape[1] != math.prod(view):
        raise ValueError(f"expected (B, {math.prod(view)}) to view as {view}, got shape {tuple(x.shape)}")
    return x.reshape(x.shape[0], *view)
