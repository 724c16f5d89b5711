"""Use bijections in `nflows <https://github.com/bayesiains/nflows>`_, and its transforms here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from invertible_attention.bijection import Bijection
from invertible_attention.interop._missing import missing
from invertible_attention.interop.wrappers import Foreign, flattened, used

try:
    from nflows.transforms import Transform
except ImportError as error:
    raise missing("nflows", error) from error

__all__ = ["NflowsTransform", "from_nflows", "to_nflows"]


class NflowsTransform(Transform):
    """A bijection as an ``nflows`` transform; both go from data to noise.

    Args:
        bijection: From data to latent.
    """

    def __init__(self, bijection: Bijection) -> None:
        super().__init__()
        self.bijection = bijection

    def forward(
        self, inputs: Float[Tensor, "batch *event"], context: Tensor | None = None
    ) -> tuple[Tensor, Float[Tensor, " batch"]]:
        """Return noise and ``log|det|``, from data."""
        return self.bijection.forward_and_logdet(inputs, **used(self.bijection, context))

    def inverse(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, inputs: Float[Tensor, "batch *event"], context: Tensor | None = None
    ) -> tuple[Tensor, Float[Tensor, " batch"]]:
        """Return data and ``log|det|``, from noise."""
        return self.bijection.inverse_and_logdet(inputs, **used(self.bijection, context))


def to_nflows(bijection: Bijection, view: Sequence[int] | None = None) -> NflowsTransform:
    """Return a bijection as an ``nflows.transforms.Transform``.

    Args:
        bijection: Such as :class:`~invertible_attention.InvertibleAttention` or a chain of
            :mod:`invertible_attention.flows`.
        view: Shape ``(C, *spatial)`` the flow's vectors are viewed as; ``None`` if it holds events of that shape.

    Example:
        >>> import torch, invertible_attention as ia
        >>> from nflows.distributions import StandardNormal
        >>> from nflows.flows import Flow
        >>> from invertible_attention.interop import to_nflows
        >>> flow = Flow(to_nflows(ia.InvertibleAttention(1), view=(1, 2)), StandardNormal([2]))
        >>> flow.log_prob(torch.randn(5, 2)).shape
        torch.Size([5])
    """
    return NflowsTransform(flattened(bijection, view))


def from_nflows(transform: Transform, uses_context: bool = False) -> Foreign:
    """Return an ``nflows`` transform as a bijection.

    Args:
        transform: A transform with an inverse.
        uses_context: Whether it was built for a context (``context_features``); otherwise it is given none.
    """
    return Foreign(_call, uses_context, transform=transform)


def _call(transform: Any, x: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
    return (transform.inverse if inverse else transform)(x, context)
