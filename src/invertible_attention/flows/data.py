"""From pixels to the real line: dequantization and the logit."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional as F

from invertible_attention._mask import count_valid, on_valid, valid_values
from invertible_attention.bijection import Bijection

__all__ = ["Dequantize", "Logit"]


class Dequantize(Bijection):
    r"""Integers :math:`0 \dots L - 1` to the unit interval by uniform noise, :math:`z = (x + u) / L`.

    With it inside, a flow's log-density of an integer image is a lower bound of its log-probability, and
    ``Flow.bits_per_dim`` the field's bits per dimension: the log-determinant is :math:`-d \log L`, so nothing
    is to be added by hand. The inverse rounds down to an integer in range and undoes the forward map exactly.

    Args:
        levels: Number of levels :math:`L`; 256 for 8-bit images.
        generator: Where the noise comes from; by default torch's global generator.

    Raises:
        ValueError: If there are fewer than 2 levels.

    References:
        Theis, van den Oord, Bethge 2016, A note on the evaluation of generative models, Section 3.1.

    Examples:
        >>> import torch
        >>> x = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
        >>> flow = Dequantize()
        >>> bool((flow.inverse(flow(x)) == x).all())
        True
    """

    uses_mask = True

    def __init__(self, levels: int = 256, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if levels < 2:
            raise ValueError(f"levels must be at least 2, got {levels}")
        self.levels = levels
        self.generator = generator

    def extra_repr(self) -> str:
        """Return the arguments."""
        return str(self.levels)

    def forward(
        self,
        x: Shaped[Tensor, "batch *event"],
        context: Tensor | None = None,
        *,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Return a value in the unit interval, of the type of ``x`` or, for integers, the default type."""
        if not x.is_floating_point():
            x = x.to(torch.get_default_dtype())
        elif x.dtype in (torch.float16, torch.bfloat16):
            x = x.float()
        device = x.device if self.generator is None else self.generator.device
        noise = torch.rand(x.shape, generator=self.generator, dtype=x.dtype, device=device).to(x.device)
        # Nearer to an integer than this, x + u or its quotient may round to it, and inverse be off by one.
        margin = 4 * self.levels * torch.finfo(x.dtype).eps
        noise = noise.clamp(margin, 1 - margin)
        return on_valid(lambda values: (values + noise) / self.levels, x, mask)

    def inverse(
        self,
        z: Float[Tensor, "batch *event"],
        context: Tensor | None = None,
        *,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Return the integer below ``levels · z``, kept in range, in the floating point type of ``z``."""
        return on_valid(lambda values: (values * self.levels).floor().clamp(0, self.levels - 1), z, mask)

    def forward_and_logdet(
        self,
        x: Shaped[Tensor, "batch *event"],
        context: Tensor | None = None,
        *,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Float[Tensor, " batch"]]:
        """Return the dequantized value and ``-d log L``."""
        z = self.forward(x, mask=mask)
        return z, self._logdet(z, mask)

    def inverse_and_logdet(
        self,
        z: Float[Tensor, "batch *event"],
        context: Tensor | None = None,
        *,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Float[Tensor, " batch"]]:
        """Return the integers and ``d log L``."""
        return self.inverse(z, mask=mask), -self._logdet(z, mask)

    def _logdet(self, z: Tensor, mask: Tensor | None) -> Float[Tensor, " batch"]:
        if mask is not None:
            return -math.log(self.levels) * count_valid(mask, z)
        dim = math.prod(z.shape[1:])
        dtype = torch.promote_types(z.dtype, torch.float32)
        return torch.full((z.shape[0],), -dim * math.log(self.levels), dtype=dtype, device=z.device)


class Logit(Bijection):
    r"""The unit interval to the real line, :math:`z = \operatorname{logit}(\alpha + (1 - 2\alpha) x)`.

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

    uses_mask = True

    def __init__(self, alpha: float = 0.05) -> None:
        super().__init__()
        if not 0 <= alpha < 0.5:
            raise ValueError(f"alpha must lie in [0, 0.5), got {alpha}")
        self.alpha = alpha

    def extra_repr(self) -> str:
        """Return the arguments."""
        return str(self.alpha)

    def forward(
        self,
        x: Float[Tensor, "batch *event"],
        context: Tensor | None = None,
        *,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Return ``logit(α + (1 - 2α) x)``; not finite outside of its domain."""
        return on_valid(self._logit, x, mask, fill=0.5)

    def inverse(
        self,
        z: Float[Tensor, "batch *event"],
        context: Tensor | None = None,
        *,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Return ``(sigmoid(z) - α) / (1 - 2α)``, up to ``α / (1 - 2α)`` outside of the unit interval."""
        return on_valid(lambda values: (values.sigmoid() - self.alpha) / (1 - 2 * self.alpha), z, mask)

    def forward_and_logdet(
        self,
        x: Float[Tensor, "batch *event"],
        context: Tensor | None = None,
        *,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Float[Tensor, " batch"]]:
        """Return the logit and the log-determinant."""
        z = self.forward(x, mask=mask)
        return z, self._logdet(z, mask)

    def inverse_and_logdet(
        self,
        z: Float[Tensor, "batch *event"],
        context: Tensor | None = None,
        *,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Float[Tensor, " batch"]]:
        """Return the inverse and its log-determinant."""
        return self.inverse(z, mask=mask), -self._logdet(z, mask)

    def _logit(self, x: Tensor) -> Tensor:
        inside = self.alpha + (1 - 2 * self.alpha) * x
        return inside.log() - (-inside).log1p()

    def _logdet(self, z: Tensor, mask: Tensor | None) -> Float[Tensor, " batch"]:
        """Use that the derivative of the logit is ``1 / (s (1 - s))`` with ``s = sigmoid(z)``."""
        wide = z.to(torch.promote_types(z.dtype, torch.float32))
        if mask is not None:
            wide = wide.masked_fill(~valid_values(mask, z), 0.0)
        terms = F.softplus(wide) + F.softplus(-wide) + math.log1p(-2 * self.alpha)
        if mask is not None:
            terms = torch.where(valid_values(mask, z), terms, 0.0)
        return terms.flatten(1).sum(1)
