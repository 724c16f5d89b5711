"""Bijections that adapters need around others: another direction, events seen as vectors, other libraries' layers."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
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
    "Wrapper",
    "flattened",
    "sum_over_event",
    "used",
]

_OPPOSITE = {
    "forward": "inverse",
    "inverse": "forward",
    "forward_and_logdet": "inverse_and_logdet",
    "inverse_and_logdet": "forward_and_logdet",
}

Call = Callable[[Any, Tensor, Tensor | None, bool], tuple[Tensor, Tensor | float | None]]


class Wrapper(Bijection):
    """A bijection around another, which takes the same contexts and masks; subclasses say how it is called.

    Args:
        bijection: The other one.
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
        """Return ``f(x)``."""
        return self._call("forward", x, context, mask)

    def inverse(self, z: Event, *, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Return ``f⁻¹(z)``."""
        return self._call("inverse", z, context, mask)

    def forward_and_logdet(
        self, x: Event, *, context: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Float[Tensor, " batch"]]:
        """Return ``f(x)`` and its log-determinant."""
        return self._call("forward_and_logdet", x, context, mask)

    def inverse_and_logdet(
        self, z: Event, *, context: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Float[Tensor, " batch"]]:
        """Return ``f⁻¹(z)`` and its log-determinant."""
        return self._call("inverse_and_logdet", z, context, mask)

    @abstractmethod
    def _call(self, method: str, x: Tensor, context: Tensor | None, mask: Tensor | None) -> Any:
        """Return what a method of this bijection returns."""

    def _inner(self, method: str, x: Tensor, **given: Tensor | None) -> Any:
        """Call a method of the inner bijection; ``forward`` with its hooks."""
        refuse_unused(self.bijection, **given)
        call = self.bijection if method == "forward" else getattr(self.bijection, method)
        return call(x, **{name: value for name, value in given.items() if value is not None})


class Inverse(Wrapper):
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

    def _call(self, method: str, x: Tensor, context: Tensor | None, mask: Tensor | None) -> Any:
        refuse_unused(self, context=context, mask=mask)
        return self._inner(_OPPOSITE[method], x, context=context, mask=mask)


class Foreign(Bijection):
    """A layer of another library as a bijection.

    Args:
        call: Given the layer, a batch, a context and whether the direction is from latent to data, returns the
            result and the log-determinant of the direction, over the event or not; ``None`` for zero.
        uses_context: Whether the layer was built for a context; otherwise it is given none.
        **layer: The layer, by the name that its parameters have in a ``state_dict``.
    """

    def __init__(self, call: Call, uses_context: bool = False, **layer: Any) -> None:
        super().__init__()
        self.uses_context = uses_context
        self.call = call
        ((self.name, found),) = layer.items()
        setattr(self, self.name, found)

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
        y, logdet = self.call(getattr(self, self.name), x, context, inverse)
        logdet = logdet if isinstance(logdet, Tensor) else x.new_tensor(float(logdet or 0))
        return y, sum_over_event(logdet, x.shape[0])


class FlattenedBijection(Wrapper):
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
        super().__init__(bijection)
        self.view = tuple(view)
        self.output_view = self.view if output_view is None else tuple(output_view)
        if math.prod(self.view) != math.prod(self.output_view):
            raise ValueError(f"views {self.view} and {self.output_view} differ in size")

    def extra_repr(self) -> str:
        """Return the arguments that are not modules."""
        return str(self.view) if self.view == self.output_view else f"{self.view}, {self.output_view}"

    def output_mask(self, mask: Bool[Tensor, "batch dim"]) -> Bool[Tensor, "batch dim"]:
        """Return the mask of the result's values."""
        return spread_over_channels(self.bijection.output_mask(self._positions(mask)), self.output_view)

    def _positions(self, mask: Tensor) -> Tensor:
        values = _view(mask, self.view)
        return channelwise(values) if len(self.view) > 1 else values

    def _call(self, method: str, x: Tensor, context: Tensor | None, mask: Tensor | None) -> Any:
        refuse_unused(self, context=context, mask=mask)
        mask = None if mask is None else self._positions(mask)
        view = self.output_view if method.startswith("inverse") else self.view
        result = self._inner(method, _view(x, view), context=context, mask=mask)
        return result.flatten(1) if isinstance(result, Tensor) else (result[0].flatten(1), result[1])


class MaskInContext(Wrapper):
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

    uses_context = True  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]
    uses_mask = False  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]

    def __init__(self, bijection: Bijection) -> None:
        if not bijection.uses_mask:
            raise ValueError(f"{type(bijection).__name__} takes no mask")
        super().__init__(bijection)

    def _call(self, method: str, x: Tensor, context: Tensor | None, mask: Tensor | None) -> Any:
        refuse_unused(self, mask=mask)
        positions = x.shape[1:].numel() if x.ndim == 2 else x.shape[2:].numel()
        if context is None or context.ndim != 2 or context.shape[1] < positions:
            found = None if context is None else tuple(context.shape)
            raise ValueError(
                f"expected a context of at least {positions} features, its mask the last, got {found}"
            )
        features, valid = context.split([context.shape[1] - positions, positions], dim=1)
        own = features if features.shape[1] else None
        return self._inner(method, x, context=own, mask=valid > 0.5)


def flattened(bijection: Bijection, view: Sequence[int] | None) -> Bijection:
    """Return the bijection itself, or its :class:`FlattenedBijection` if there is a view.

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
