"""Channel-wise affine normalization, set from the first batch."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from invertible_attention._initialize import SetFromData
from invertible_attention._mask import on_valid, valid_values
from invertible_attention._precision import raised, require_real
from invertible_attention.bijection import refuse_unused
from invertible_attention.flows.closed_form import ClosedForm

__all__ = ["ActNorm"]


class ActNorm(SetFromData, ClosedForm):
    r"""Activation normalization, :math:`z_c = e^{s_c} x_c + t_c` per channel :math:`c`.

    Scale and shift are ordinary parameters. The first batch of :meth:`forward` in training mode sets them so that
    each channel of the output has mean 0 and variance 1; later batches do not matter. In a process group the
    statistics are those of all processes' batches together. Until then the inverse is the identity, and nothing
    can be evaluated in evaluation mode.

    Args:
        channels: Number of channels, the axis after the batch.
        eps: Added to the variance when the parameters are set.

    Raises:
        ValueError: If ``channels`` is below 1; in a call, if the input has another number of channels.
        RuntimeError: In evaluation mode before the parameters are set; if the first batch comes inside a
            ``torch.func`` transform.

    Attributes:
        initialized: Not zero once the parameters are set, a buffer that a state dict carries.

    References:
        Kingma, Dhariwal 2018, Glow, Section 3.1.

    Examples:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> z = ActNorm(3)(5 + 2 * torch.randn(64, 3, 8, 8))
        >>> bool(z.mean().abs() < 1e-3), bool((z.std() - 1).abs() < 1e-3)
        (True, True)
    """

    from_data = ("log_scale", "shift")

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels must be at least 1, got {channels}")
        self.channels = channels
        self.eps = eps
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.shift = nn.Parameter(torch.zeros(channels))
        self.register_buffer("initialized", torch.zeros(()))

    def extra_repr(self) -> str:
        """Return the arguments."""
        return str(self.channels)

    def initialize(
        self, x: Float[Tensor, "batch *event"], *, context: Tensor | None = None, mask: Tensor | None = None
    ) -> None:
        """Set scale and shift from ``x`` where the mask is true. Samples that are not finite are skipped.

        In a process group those of this process alone are set.

        Raises:
            ValueError: If no sample is finite, and for a context.
            RuntimeError: Inside a ``torch.func`` transform.
        """
        refuse_unused(self, context=context)
        self._check(x)
        super().initialize(x, mask=mask)

    def _set(self, x: Tensor, mask: Tensor | None, reduce: Callable[[Tensor, str], Tensor]) -> None:
        wide = x.detach().to(torch.float64)
        seen = torch.ones_like(wide, dtype=torch.bool)
        if mask is not None:
            seen = valid_values(mask, x).expand_as(x)
            wide = wide.masked_fill(~seen, 0.0)
        finite = wide.isfinite().flatten(1).all(1)
        values, weight = (t[finite].flatten(2) if x.ndim > 2 else t[finite, :, None] for t in (wide, seen))
        count = weight.sum((0, 2)).to(wide.dtype)
        count, total = reduce(torch.stack([count, values.sum((0, 2))]), "SUM")
        if not count.any():
            raise ValueError("no sample of the first batch is finite, so ActNorm cannot be initialized")
        # A channel that is padding in every sample stays as it is.
        absent, count = count == 0, count.clamp_min(1)
        mean = total / count
        square = reduce(((values - mean.view(-1, 1)) * weight).square().sum((0, 2)), "SUM")
        log_scale = (-0.5 * (square / count + self.eps).log()).masked_fill(absent, 0.0)
        self.log_scale.copy_(log_scale)
        self.shift.copy_(-mean * log_scale.exp())

    def _forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        self._check(x)
        self.require_initialized(x, mask)
        scale, shift = self._scale_and_shift(x)
        return self._rounded(on_valid(lambda values: values * scale + shift, raised(x), mask), x)

    def _inverse(self, z: Tensor, mask: Tensor | None) -> Tensor:
        self._check(z)
        if not self.training:
            self.require_initialized(z, mask)
        scale, shift = self._scale_and_shift(z)
        return self._rounded(on_valid(lambda values: (values - shift) / scale, raised(z), mask), z)

    def _scale_and_shift(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._broadcast(raised(self.log_scale).exp(), x), self._broadcast(raised(self.shift), x)

    def _rounded(self, result: Tensor, given: Tensor) -> Tensor:
        return (
            result
            if raised(given) is given or given.dtype != self.log_scale.dtype
            else result.to(given.dtype)
        )

    def _logdet(self, z: Tensor, mask: Tensor | None) -> Float[Tensor, " batch"]:
        wide = raised(self.log_scale)
        if mask is None:
            return (math.prod(z.shape[2:]) * wide.sum()).expand(z.shape[0])
        valid = valid_values(mask, z)
        return torch.where(valid, self._broadcast(wide, z), 0.0).flatten(1).sum(1)

    def _check(self, x: Tensor) -> None:
        if x.ndim < 2 or x.shape[1] != self.channels:
            raise ValueError(f"expected (B, {self.channels}, ...), got shape {tuple(x.shape)}")
        require_real(x)

    @staticmethod
    def _broadcast(vector: Tensor, x: Tensor) -> Tensor:
        return vector.view(-1, *[1] * (x.ndim - 2))
