"""Use bijections in `zuko <https://zuko.readthedocs.io>`_, and its transformations here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.distributions import Transform

from invertible_attention.bijection import Bijection
from invertible_attention.interop._missing import missing
from invertible_attention.interop.distributions import (
    DistributionTransform,
    call_and_logdet,
    from_distribution,
)
from invertible_attention.interop.wrappers import Foreign, flattened, used

try:
    from zuko.lazy import LazyTransform
except ImportError as error:
    raise missing("zuko", error) from error

__all__ = ["ZukoTransform", "from_zuko", "to_zuko"]


class ZukoTransform(LazyTransform):
    """A bijection as a zuko lazy transformation: called with a context, it returns the transformation.

    Args:
        bijection: From data to latent.
        **arguments: See :class:`.distributions.DistributionTransform`.
    """

    def __init__(self, bijection: Bijection, **arguments: Any) -> None:
        super().__init__()
        self.bijection = bijection
        self.arguments = arguments

    def forward(self, c: Tensor | None = None) -> DistributionTransform:
        """Return the transformation given a context."""
        return DistributionTransform(self.bijection, **used(self.bijection, c), **self.arguments)


def to_zuko(
    bijection: Bijection, event_dim: int = 1, *, view: Sequence[int] | None = None, **arguments: Any
) -> ZukoTransform:
    """Return a bijection as a ``zuko.lazy.LazyTransform``.

    Args:
        bijection: Such as :class:`~invertible_attention.InvertibleAttention` or a chain of
            :mod:`invertible_attention.flows`.
        event_dim: Number of axes of an event: 1 for vectors, 3 for images.
        view: Shape ``(C, *spatial)`` vectors are viewed as; ``None`` if events have that shape.
        **arguments: See :class:`.distributions.DistributionTransform`.

    Example:
        >>> import torch, zuko, invertible_attention as ia
        >>> from invertible_attention.interop import to_zuko
        >>> flow = zuko.flows.MAF(2, transforms=1)
        >>> attention = to_zuko(ia.InvertibleAttention(1), view=(1, 2))
        >>> flow = zuko.lazy.Flow([attention, *flow.transform.transforms], flow.base)
        >>> flow().log_prob(torch.randn(5, 2)).shape
        torch.Size([5])
    """
    return ZukoTransform(flattened(bijection, view), event_dim=event_dim, **arguments)


def from_zuko(transform: LazyTransform | Transform, uses_context: bool = False) -> Bijection:
    """Return a zuko transformation as a bijection.

    Args:
        transform: The transformation. A lazy one receives the context.
        uses_context: Whether it was built for a context; otherwise it is given none.
    """
    if isinstance(transform, LazyTransform):
        return Foreign(_call, uses_context, transform=transform)
    return from_distribution(transform)


def _call(lazy: LazyTransform, x: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Tensor]:
    transform = lazy(context)
    return call_and_logdet(transform.inv if inverse else transform, x)
