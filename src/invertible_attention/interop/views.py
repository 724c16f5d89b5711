"""Bijections that adapters need around others: another direction, and events seen as vectors."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from invertible_attention._mask import channelwise, spread_over_channels
from invertible_attention.bijection import Bijection, Event, given, refuse_unused

__all__ = [
    "FlattenedBijection",
    "Foreign",
    "Inverse",
    "MaskInContext",
    "on_vectors",
    "sum_over_event",
    "used",
]


class Inverse(Bijection):
    r"""The inverse of a bijection, :math:`f^{-1}`, as a bijection.

    Flow libraries differ in the direction they call forward, and a density that is trained by sampling wants the
    cheap direction to be the one from latent to data. It takes a mask where :math:`f` does and keeps the shape.

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

    @property
    def uses_context(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the bijection uses a context."""
        return self.bijection.uses_context

    @property
    def uses_mask(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the bijection uses a mask."""
        return self.bijection.uses_mask

    def forward(self, x: Event, *, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Return ``f⁻¹(x)``."""
        return self.bijection.inverse(x, **given(self, context=context, mask=mask))

    def inverse(self, z: Event, *, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Return ``f(z)``."""
        return self.bijection(z, **given(self, context=context, mask=mask))

    def forward_and_logdet(
        self, x: Event, *, context: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Float[Tensor, " batch"]]:
        """Return ``f⁻¹(x)`` and its log-determinant."""
        return self.bijection.inverse_and_logdet(x, **given(self, context=context, mask=mask))

    def inverse_and_logdet(
        self, z: Event, *, context: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Float[Tensor, " batch"]]:
        """Return ``f(z)`` and its log-determinant."""
        return self.bijection.forward_and_logdet(z, **given(self, context=context, mask=mask))


class Foreign(Bijection):
    """A layer of another library as a bijection; subclasses say how it is called."""

    def forward_and_logdet(
        self, x: Event, *, context: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Float[Tensor, " batch"]]:
        """Return the layer's result from data to latent, and the log-determinant."""
        return self._evaluate(x, context, mask, inverse=False)

    def inverse_and_logdet(
        self, z: Event, *, context: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Float[Tensor, " batch"]]:
        """Return the layer's result from latent to data, and the log-determinant."""
        return self._evaluate(z, context, mask, inverse=True)

    def _evaluate(
        self, x: Tensor, context: Tensor | None, mask: Tensor | None, *, inverse: bool
    ) -> tuple[Tensor, Tensor]:
        refuse_unused(self, context=context, mask=mask)
        y, logdet = self._call(x, context, inverse=inverse)
        logdet = logdet if isinstance(logdet, Tensor) else x.new_tensor(float(logdet or 0))
        return y, sum_over_event(logdet, x.shape[0])

    @abstractmethod
    def _call(
        self, x: Tensor, context: Tensor | None, *, inverse: bool
    ) -> tuple[Tensor, Tensor | float | None]:
        """Return the result and the log-determinant of the direction, over the event or not; ``None`` for zero."""


class FlattenedBijection(Bijection):
    """A bijection of images or sequences, applied to vectors ``(B, D)`` that hold them.

    Args:
        bijection: Maps events of shape ``view`` to events.
        view: Shape ``(C, *spatial)`` a vector is viewed as, row-major.
        output_view: Shape of the bijection's result where it is another one.

    Raises:
        ValueError: If the two shapes do not hold the same number of values; in a call, if a vector does not.

    Example:
        >>> import torch, invertible_attention as ia
        >>> from invertible_attention.interop import FlattenedBijection
        >>> layer = FlattenedBijection(ia.InvertibleAttention(3), (3, 4))
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

    @property
    def uses_context(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the bijection uses a context."""
        return self.bijection.uses_context

    @property
    def uses_mask(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the bijection uses a mask."""
        return self.bijection.uses_mask

    def extra_repr(self) -> str:
        """Return the arguments that are not modules."""
        return str(self.view) if self.view == self.output_view else f"{self.view}, {self.output_view}"

    def forward(self, x: Event, *, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Return ``(B, D)``."""
        return self.bijection(_view(x, self.view), **self._given(context, mask)).flatten(1)

    def inverse(self, z: Event, *, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Return ``(B, D)``."""
        return self.bijection.inverse(_view(z, self.output_view), **self._given(context, mask)).flatten(1)

    def forward_and_logdet(
        self, x: Event, *, context: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Float[Tensor, " batch"]]:
        """Return ``(B, D)`` and the log-determinant."""
        z, logdet = self.bijection.forward_and_logdet(_view(x, self.view), **self._given(context, mask))
        return z.flatten(1), logdet

    def inverse_and_logdet(
        self, z: Event, *, context: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Float[Tensor, " batch"]]:
        """Return ``(B, D)`` and the log-determinant of the inverse."""
        x, logdet = self.bijection.inverse_and_logdet(
            _view(z, self.output_view), **self._given(context, mask)
        )
        return x.flatten(1), logdet

    def output_mask(self, mask: Bool[Tensor, "batch dim"]) -> Bool[Tensor, "batch dim"]:
        """Return the mask of the result's values."""
        return spread_over_channels(self.bijection.output_mask(self._positions(mask)), self.output_view)

    def _positions(self, mask: Tensor) -> Tensor:
        values = _view(mask, self.view)
        return channelwise(values) if len(self.view) > 1 else values

    def _given(self, context: Tensor | None, mask: Tensor | None) -> dict[str, Any]:
        refuse_unused(self, context=context, mask=mask)
        mask = None if mask is None else self._positions(mask)
        return given(self.bijection, context=context, mask=mask)


class MaskInContext(Bijection):
    """A bijection that takes a mask, given it as the last features of its context.

    Flow libraries pass a context on, but no mask. The last features of the context ``(B, K + N)``, one for each of
    the :math:`N` positions of the input, say which are valid: 1 where they are, 0 where not. The first :math:`K`
    are the bijection's own context, if there are any.

    Args:
        bijection: One that takes a mask.

    Raises:
        ValueError: If it takes none; in a call, if the context is too short for a mask.

    Example:
        >>> import torch, invertible_attention as ia
        >>> from invertible_attention.interop import MaskInContext
        >>> layer = MaskInContext(ia.InvertibleAttention(3))
        >>> x, mask = torch.randn(2, 3, 5), torch.tensor([[1.0, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
        >>> bool((layer(x, context=mask)[1, :, 2:] == x[1, :, 2:]).all())
        True
    """

    uses_context = True

    def __init__(self, bijection: Bijection) -> None:
        super().__init__()
        if not bijection.uses_mask:
            raise ValueError(f"{type(bijection).__name__} takes no mask")
        self.bijection = bijection

    def forward(self, x: Event, *, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Return ``f(x)``."""
        return self.bijection(x, **self._split(x, context, mask))

    def inverse(self, z: Event, *, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Return ``f⁻¹(z)``."""
        return self.bijection.inverse(z, **self._split(z, context, mask))

    def forward_and_logdet(
        self, x: Event, *, context: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Float[Tensor, " batch"]]:
        """Return ``f(x)`` and its log-determinant."""
        return self.bijection.forward_and_logdet(x, **self._split(x, context, mask))

    def inverse_and_logdet(
        self, z: Event, *, context: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Float[Tensor, " batch"]]:
        """Return ``f⁻¹(z)`` and its log-determinant."""
        return self.bijection.inverse_and_logdet(z, **self._split(z, context, mask))

    def _split(self, x: Tensor, context: Tensor | None, mask: Tensor | None) -> dict[str, Any]:
        refuse_unused(self, mask=mask)
        positions = x.shape[1:].numel() if x.ndim == 2 else x.shape[2:].numel()
        if context is None or context.ndim != 2 or context.shape[1] < positions:
            found = None if context is None else tuple(context.shape)
            raise ValueError(
                f"expected a context of at least {positions} features, its mask the last, got {found}"
            )
        features, valid = context.split([context.shape[1] - positions, positions], dim=1)
        own = features if features.shape[1] else None
        return given(self.bijection, context=own, mask=valid > 0.5)


def on_vectors(bijection: Bijection, view: Sequence[int] | None) -> Bijection:
    """Return the bijection itself, or seen through ``view``.

    Raises:
        ValueError: If it is not a bijection.
    """
    if not isinstance(bijection, Bijection):
        raise ValueError(f"expected a Bijection, got {type(bijection).__name__}")
    return bijection if view is None else FlattenedBijection(bijection, view)


def sum_over_event(values: Tensor, batch: int) -> Float[Tensor, " batch"]:
    """Sum a log-determinant over every axis but the first, in ``float32`` or better; scalars are repeated."""
    wide = values.to(torch.promote_types(values.dtype, torch.float32))
    return wide.expand(batch) if wide.ndim == 0 else wide.reshape(batch, -1).sum(1)


def used(bijection: Bijection, context: Tensor | None) -> dict[str, Any]:
    """Return the keyword arguments of a part of a foreign chain, which passes its context to every part."""
    return given(bijection, context=context if bijection.uses_context else None)


def _view(x: Tensor, view: tuple[int, ...]) -> Tensor:
    if x.ndim != 2 or x.shape[1] != math.prod(view):
        raise ValueError(f"expected (B, {math.prod(view)}) to view as {view}, got shape {tuple(x.shape)}")
    return x.reshape(x.shape[0], *view)
