"""Use bijections in `Pyro <https://pyro.ai>`_ models, also given a context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from invertible_attention.bijection import Bijection
from invertible_attention.interop._missing import missing
from invertible_attention.interop.distributions import DistributionTransform
from invertible_attention.interop.wrappers import flattened

try:
    from pyro.distributions import ConditionalTransformModule, TransformModule
except ImportError as error:
    raise missing("pyro-ppl", error) from error

__all__ = ["PyroConditionalTransform", "PyroTransform", "to_pyro", "to_pyro_conditional"]


class PyroTransform(DistributionTransform, TransformModule):  # pyright: ignore[reportIncompatibleVariableOverride]
    """A bijection as a Pyro ``TransformModule``; see :class:`.distributions.DistributionTransform`."""

    def __hash__(self) -> int:
        return DistributionTransform.__hash__(self)


class PyroConditionalTransform(ConditionalTransformModule):
    """A bijection as a Pyro transform that waits for a context.

    Args:
        bijection: From data to latent.
        **arguments: See :class:`.distributions.DistributionTransform`.
    """

    def __init__(self, bijection: Bijection, **arguments: Any) -> None:
        super().__init__()
        self.bijection = bijection
        self.arguments = arguments

    def condition(self, context: Tensor) -> PyroTransform:
        """Return the transform given a context, batch axes first."""
        return PyroTransform(self.bijection, context=context, **self.arguments)


def to_pyro(
    bijection: Bijection, event_dim: int = 1, *, view: Sequence[int] | None = None, **arguments: Any
) -> PyroTransform:
    """Return a bijection as a Pyro transform; arguments as in :func:`.distributions.to_distribution`.

    Example:
        >>> import torch, pyro.distributions as dist, invertible_attention as ia
        >>> from invertible_attention.interop import to_pyro
        >>> attention = to_pyro(ia.InvertibleAttention(1), view=(1, 2))
        >>> flow = dist.TransformedDistribution(dist.Normal(torch.zeros(2), 1.0).to_event(1), [attention.inv])
        >>> flow.log_prob(torch.randn(5, 2)).shape
        torch.Size([5])
    """
    return PyroTransform(flattened(bijection, view), event_dim, **arguments)


def to_pyro_conditional(
    bijection: Bijection, event_dim: int = 1, *, view: Sequence[int] | None = None, **arguments: Any
) -> PyroConditionalTransform:
    """Return a bijection that uses a context as a conditional Pyro transform; arguments as in :func:`to_pyro`."""
    return PyroConditionalTransform(flattened(bijection, view), event_dim=event_dim, **arguments)
