"""From pixels to the real line: dequantization and the logit."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from invertible_attention._differentiation import functional_transforms_active
from invertible_attention._mask import count_valid, on_valid, valid_values
from invertible_attention._precision import raised, require_real
from invertible_attention.bijection import Event, refuse_unused
from invertible_attention.flows.closed_form import ClosedForm

__all__ = ["Dequantize", "Logit"]


class Dequantize(ClosedForm):
    r"""Integers :math:`0 \dots L - 1` to the unit interval by uniform noise, :math:`z = (x + u) / L`.

    With it inside, a flow's log-density of an integer image is a lower bound of its log-probability, and
    ``Flow.bits_per_dim`` the field's bits per dimension: the log-determinant is :math:`-d \log L`, so nothing
    is to be added by hand. The inverse rounds down to an integer in range and undoes the forward map exactly.
    Integers become the default floating point type, half precisions ``float32``.

    Args:
        levels: Number of levels :math:`L`; 256 for 8-bit images.
        generator: Where the noise comes from; by default torch's global generator.

    Raises:
        ValueError: If there are fewer than 2 levels; in the forward direction, for a value that is no integer
            from 0 to ``levels - 1``, such as pixels in [0, 1] (NaN inside ``torch.func`` and ``torch.compile``).

    References:
        Theis, van den Oord, Bethge 2016, A note on the evaluation of generative models, Section 3.1.

    Examples:
        >>> import torch
        >>> x = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
        >>> flow = Dequantize()
        >>> bool((flow.inverse(flow(x)) == x).all())
        True
    """

    def __init__(self, levels: int = 256, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if levels < 2:
            raise ValueError(f"levels must be at least 2, got {levels}")
        self.levels = levels
        self.generator = generator

    def extra_repr(self) -> str:
        """Return the arguments."""
        return str(self.levels)

    def _forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        require_real(x)
        fits = x.dtype == torch.uint8 and self.levels >= 256  # whatever its values
        x = raised(x) if x.is_floating_point() else x.to(torch.get_default_dtype())
        device = x.device if self.generator is None else self.generator.device
        noise = torch.rand(x.shape, generator=self.generator, dtype=x.dtype, device=device).to(x.device)
        # Nearer to an integer than this, x + u or its quotient may round to it, and inverse be off by one.
        margin = 4 * self.levels * torch.finfo(x.dtype).eps
        noise = noise.clamp(margin, 1 - margin)
        return on_valid(
            lambda values: ((values if fits else self._integers(values)) + noise) / self.levels, x, mask
        )

    def _integers(self, values: Tensor) -> Tensor:
        """Refuse what is no integer in range; where values cannot be looked at, make it NaN."""
        other = (values != values.floor()) | (values < 0) | (values > self.levels - 1)
        if values.is_meta or torch.compiler.is_compiling() or functional_transforms_active():
            return values.masked_fill(other, math.nan)
        if other.any():
            low, high = values.min().item(), values.max().item()
            raise ValueError(
                f"Dequantize({self.levels}) takes integers from 0 to {self.levels - 1}, got "
                f"{values[other][0].item():g} among values from {low:g} to {high:g}: pass the pixels as they "
                f"are stored, or (x * {self.levels - 1}).round() of pixels in [0, 1]"
            )
        return values

    def _inverse(self, z: Tensor, mask: Tensor | None) -> Tensor:
        require_real(z)
        return on_valid(lambda values: (values * self.levels).floor().clamp(0, self.levels - 1), z, mask)

    def _logdet(self, z: Tensor, mask: Tensor | None) -> Float[Tensor, " batch"]:
        if mask is not None:
            return -math.log(self.levels) * count_valid(mask, z)
        dim = math.prod(z.shape[1:])
        return torch.full((z.shape[0],), -dim * math.log(self.levels), dtype=raised(z).dtype, device=z.device)


class Logit(ClosedForm):
    r"""The unit interval to the real line, :math:`z = \operatorname{logit}(\alpha + (1 - 2\alpha) x)`.

    Not finite outside of its domain.

    Args:
        alpha: Margin :math:`\alpha`, in :math:`[0, 1/2)`, that keeps the ends of the interval finite.
            Residual Flow uses 0.05 on CIFAR-10.

    Raises:
        ValueError: If ``alpha`` is out of range.

    Examples:
        >>> import torch
        >>> Logit(0.05)(torch.tensor([[0.0, 0.5, 1.0]]))
        tensor([[-2.9444,  0.0000,  2.9444]])
    """

    def __init__(self, alpha: float = 0.05) -> None:
        super().__init__()
        if not 0 <= alpha < 0.5:
            raise ValueError(f"alpha must lie in [0, 0.5), got {alpha}")
        self.alpha = alpha

    def extra_repr(self) -> str:
        """Return the arguments."""
        return str(self.alpha)

    def forward_and_logdet(
        self, x: Event, *, context: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Float[Tensor, " batch"]]:
        """Return ``f(x)`` and ``log|det ∂f/∂x|`` per sample, which is that at ``x``, not at the rounded ``f(x)``."""
        refuse_unused(self, context=context, mask=mask)
        z = self._raised_forward(x, mask)
        return z.to(_result_dtype(x)), self._logdet(z, mask)

    def _forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return self._raised_forward(x, mask).to(_result_dtype(x))

    def _raised_forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        require_real(x)
        return on_valid(self._logit, raised(x), mask, fill=0.5)

    def _inverse(self, z: Tensor, mask: Tensor | None) -> Tensor:
        require_real(z)
        x = on_valid(lambda values: (values.sigmoid() - self.alpha) / (1 - 2 * self.alpha), raised(z), mask)
        return x.to(_result_dtype(z))

    def _logit(self, x: Tensor) -> Tensor:
        inside = self.alpha + (1 - 2 * self.alpha) * x
        return inside.log() - (-inside).log1p()

    def _logdet(self, z: Tensor, mask: Tensor | None) -> Float[Tensor, " batch"]:
        """Use that the derivative of the logit is ``1 / (s (1 - s))`` with ``s = sigmoid(z)``."""
        wide = raised(z)
        if mask is not None:
            wide = wide.masked_fill(~valid_values(mask, z), 0.0)
        terms = F.softplus(wide) + F.softplus(-wide) + math.log1p(-2 * self.alpha)
        if mask is not None:
            terms = torch.where(valid_values(mask, z), terms, 0.0)
        return terms.flatten(1).sum(1)


def _result_dtype(x: Tensor) -> torch.dtype:
    return x.dtype if x.is_floating_point() else torch.get_default_dtype()
