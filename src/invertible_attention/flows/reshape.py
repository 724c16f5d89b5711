"""Reshaping bijections: space to depth, image to vector, and factoring out channels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from invertible_attention._mask import channelwise, spread_over_channels, valid_values
from invertible_attention.bijection import Bijection, Event, given, refuse_unused
from invertible_attention.flows.closed_form import ClosedForm

__all__ = ["Flatten", "Split", "Squeeze"]


class Squeeze(ClosedForm):
    r"""Space to depth: :math:`(C, rH, rW) \to (r^2 C, H, W)`, with 1, 2 or 3 spatial axes.

    Channel ``offset · C + c`` of the output holds channel ``c`` at one offset inside the :math:`r^n` blocks;
    offsets count in row-major order. So the first half of the channels, which :class:`Split` keeps, is all
    channels at half the positions, as in i-ResNet (:func:`torch.pixel_unshuffle` orders ``c · r² + offset``).

    Args:
        factor: Block size :math:`r`.

    Raises:
        ValueError: If ``factor`` is below 1; in a call, if the axes cannot be divided.

    Examples:
        >>> import torch
        >>> Squeeze(2)(torch.arange(4.0).view(1, 1, 2, 2)).flatten()
        tensor([0., 1., 2., 3.])
    """

    def __init__(self, factor: int = 2) -> None:
        super().__init__()
        if factor < 1:
            raise ValueError(f"factor must be at least 1, got {factor}")
        self.factor = factor

    def extra_repr(self) -> str:
        """Return the arguments."""
        return str(self.factor)

    def _forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        _check_mask(mask, x)
        r, (batch, channels, *spatial) = self.factor, self._check(x)
        if any(size % r for size in spatial):
            raise ValueError(f"spatial axes must be divisible by {r}, got shape {tuple(x.shape)}")
        n = len(spatial)
        x = x.reshape(batch, channels, *(part for size in spatial for part in (size // r, r)))
        x = x.permute(0, *range(3, 3 + 2 * n, 2), 1, *range(2, 2 + 2 * n, 2))
        return x.reshape(batch, channels * r**n, *(size // r for size in spatial))

    def _inverse(self, z: Tensor, mask: Tensor | None) -> Tensor:
        r, (batch, channels, *spatial) = self.factor, self._check(z)
        n = len(spatial)
        if channels % r**n:
            raise ValueError(f"channels must be divisible by {r**n}, got shape {tuple(z.shape)}")
        z = z.reshape(batch, *[r] * n, channels // r**n, *spatial)
        interleaved = [axis for i in range(n) for axis in (n + 2 + i, 1 + i)]
        z = z.permute(0, n + 1, *interleaved)
        x = z.reshape(batch, channels // r**n, *(size * r for size in spatial))
        _check_mask(mask, x)
        return x

    def output_mask(self, mask: Bool[Tensor, "batch *spatial"]) -> Bool[Tensor, "batch *output"]:
        """Return the mask of the blocks.

        Raises:
            ValueError: If a block is valid in part.
        """
        return channelwise(self.forward(mask.unsqueeze(1)))

    @staticmethod
    def _check(x: Tensor) -> torch.Size:
        if not 3 <= x.ndim <= 5:
            raise ValueError(
                f"expected (B, C, *spatial) with 1 to 3 spatial axes, got shape {tuple(x.shape)}"
            )
        return x.shape


class Flatten(ClosedForm):
    """An event of known shape to a vector, ``(B, *shape) → (B, D)``.

    Args:
        shape: Shape of the event, without the batch axis.

    Raises:
        ValueError: In a call, if the event has another shape.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)

    def extra_repr(self) -> str:
        """Return the arguments."""
        return str(self.shape)

    def _forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        check_event(x, self.shape)
        _check_mask(mask, x)
        return x.flatten(1)

    def _inverse(self, z: Tensor, mask: Tensor | None) -> Tensor:
        check_event(z, (math.prod(self.shape),))
        x = z.reshape(z.shape[0], *self.shape)
        _check_mask(mask, x)
        return x

    def output_mask(self, mask: Bool[Tensor, "batch *spatial"]) -> Bool[Tensor, "batch dim"]:
        """Return the mask of the vector's values."""
        return spread_over_channels(mask, self.shape)


class Split(Bijection):
    r"""Factor out the second half of the channels; the first half continues through ``transform``.

    The result is one vector, :math:`z = [\text{transform}(x_1), \operatorname{vec}(x_2)]`, so a multi-scale
    flow is a nest of ``Split`` and an ordinary bijection from the image to ``(B, D)``.

    Args:
        shape: Shape ``(C, *spatial)`` of the event it is given.
        transform: What the first ``C // 2`` channels go through; it must return a vector, as a flow that
            ends with :class:`Flatten` or :class:`Split` does.

    Raises:
        ValueError: If there are fewer than 2 channels; in a call, if the event has another shape or
            ``transform`` does not return a vector.

    References:
        Dinh, Sohl-Dickstein, Bengio 2017, Density estimation using Real NVP, Section 3.6.

    Examples:
        >>> import torch
        >>> split = Split((4, 2, 2), Flatten((2, 2, 2)))
        >>> split(torch.zeros(5, 4, 2, 2)).shape
        torch.Size([5, 16])
    """

    def __init__(self, shape: Sequence[int], transform: Bijection) -> None:
        super().__init__()
        if shape[0] < 2:
            raise ValueError(f"nothing to factor out of {shape[0]} channels, shape {tuple(shape)}")
        self.shape = tuple(shape)
        self.transform = transform
        self._factored_shape = (shape[0] - shape[0] // 2, *self.shape[1:])

    @property
    def uses_context(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the transform uses a context."""
        return self.transform.uses_context

    @property
    def uses_mask(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the transform uses a mask."""
        return self.transform.uses_mask

    def extra_repr(self) -> str:
        """Return the arguments that are not modules."""
        return str(self.shape)

    def forward(self, x: Event, *, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Return ``(B, D)``."""
        kept, factored = self._divide(x)
        return self._join(self.transform(kept, **self._given(context, mask)), factored)

    def inverse(self, z: Event, *, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Return ``(B, C, *spatial)``."""
        kept, factored = self._part(z)
        return torch.cat([self.transform.inverse(kept, **self._given(context, mask)), factored], dim=1)

    def forward_and_logdet(
        self, x: Event, *, context: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Float[Tensor, " batch"]]:
        """Return ``(B, D)`` and the log-determinant of ``transform``."""
        kept, factored = self._divide(x)
        latent, logdet = self.transform.forward_and_logdet(kept, **self._given(context, mask))
        return self._join(latent, factored), logdet

    def inverse_and_logdet(
        self, z: Event, *, context: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Float[Tensor, " batch"]]:
        """Return ``(B, C, *spatial)`` and the log-determinant of the inverse of ``transform``."""
        kept, factored = self._part(z)
        x, logdet = self.transform.inverse_and_logdet(kept, **self._given(context, mask))
        return torch.cat([x, factored], dim=1), logdet

    def output_mask(self, mask: Bool[Tensor, "batch *spatial"]) -> Bool[Tensor, "batch dim"]:
        """Return the mask of the vector's values."""
        values = spread_over_channels(mask, self.shape)
        factored = values[:, values.shape[1] - math.prod(self._factored_shape) :]
        return torch.cat([self.transform.output_mask(self._given(None, mask)["mask"]), factored], dim=1)

    def _given(self, context: Tensor | None, mask: Tensor | None) -> dict[str, Tensor]:
        """Return the keyword arguments of the transform: the mask is that of the channels that are kept."""
        refuse_unused(self, context=context, mask=mask)
        if mask is not None and len(self.shape) == 1:
            mask = mask[:, : self.shape[0] // 2]
        return given(self.transform, context=context, mask=mask)

    def _divide(self, x: Tensor) -> tuple[Tensor, Tensor]:
        check_event(x, self.shape)
        half = self.shape[0] // 2
        return x[:, :half], x[:, half:]

    def _join(self, latent: Tensor, factored: Tensor) -> Tensor:
        if latent.ndim != 2:
            raise ValueError(f"transform must return (B, D), got shape {tuple(latent.shape)}")
        return torch.cat([latent, factored.flatten(1)], dim=1)

    def _part(self, z: Tensor) -> tuple[Tensor, Tensor]:
        check_event(z, (math.prod(self.shape),))
        kept = math.prod(self.shape) - math.prod(self._factored_shape)
        return z[:, :kept], z[:, kept:].reshape(z.shape[0], *self._factored_shape)


def check_event(x: Tensor, shape: Sequence[int]) -> None:
    """Raise :class:`ValueError` unless ``x`` is a batch of events of this shape."""
    if tuple(x.shape[1:]) != tuple(shape) or x.ndim == 0:
        raise ValueError(f"expected shape (B, {', '.join(map(str, shape))}), got {tuple(x.shape)}")


def _check_mask(mask: Tensor | None, x: Tensor) -> None:
    if mask is not None:
        valid_values(mask, x)
