"""Use bijections in `normflows <https://github.com/VincentStimper/normalizing-flows>`_, and its flows here."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from invertible_attention.bijection import Bijection
from invertible_attention.interop._missing import missing
from invertible_attention.interop.wrappers import Foreign, flattened, used

try:
    from normflows.flows import Flow
except ImportError as error:
    raise missing("normflows", error) from error

__all__ = ["NormflowsFlow", "from_normflows", "to_normflows"]


class NormflowsFlow(Flow):
    """A bijection as a ``normflows`` flow, whose forward direction is from latent to data.

    Training by maximum likelihood calls :meth:`inverse`, which is the bijection's forward and needs no solver.

    Args:
        bijection: From data to latent.
    """

    def __init__(self, bijection: Bijection) -> None:
        super().__init__()
        self.bijection = bijection

    def forward(
        self, z: Float[Tensor, "batch *event"], context: Tensor | None = None
    ) -> tuple[Tensor, Float[Tensor, " batch"]]:
        """Return data and ``log|det|``, from latents."""
        x, logdet = self.bijection.inverse_and_logdet(z, **used(self.bijection, context))
        return x, logdet

    def inverse(
        self, z: Float[Tensor, "batch *event"], context: Tensor | None = None
    ) -> tuple[Tensor, Float[Tensor, " batch"]]:
        """Return latents and ``log|det|``, from data."""
        return self.bijection.forward_and_logdet(z, **used(self.bijection, context))


def to_normflows(bijection: Bijection, view: Sequence[int] | None = None) -> NormflowsFlow:
    """Return a bijection (data to latent) as a ``normflows.flows.Flow`` (latent to data).

    Args:
        bijection: Such as :class:`~invertible_attention.InvertibleAttention` or a chain of
            :mod:`invertible_attention.flows`.
        view: Shape ``(C, *spatial)`` the flow's vectors are viewed as; ``None`` if it holds events of that shape.

    Example:
        >>> import torch, normflows as nf, invertible_attention as ia
        >>> from invertible_attention.interop import to_normflows
        >>> attention = to_normflows(ia.InvertibleAttention(1), view=(1, 2))
        >>> model = nf.NormalizingFlow(nf.distributions.DiagGaussian(2), [attention])
        >>> model.log_prob(torch.randn(5, 2)).shape
        torch.Size([5])
    """
    return NormflowsFlow(flattened(bijection, view))


def from_normflows(flow: Flow) -> Foreign:
    """Return a ``normflows`` flow (latent to data) as a bijection (data to latent).

    Args:
        flow: A flow with an inverse. One whose methods take a ``context`` receives it.
    """
    return Foreign(_call, "context" in inspect.signature(flow.forward).parameters, flow=flow)


def _call(flow: Flow, x: Tensor, context: Tensor | None, inverse: bool) -> tuple[Tensor, Any]:
    keywords = {} if context is None else {"context": context}
    return (flow if inverse else flow.inverse)(x, **keywords)
