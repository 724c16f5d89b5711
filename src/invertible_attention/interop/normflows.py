"""Use bijections in `normflows <https://github.com/VincentStimper/normalizing-flows>`_, and its flows here."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from invertible_attention.bijection import Bijection, given
from invertible_attention.interop._missing import missing
from invertible_attention.interop.views import Foreign, on_vectors, used

try:
    from normflows.flows import Flow
except ImportError as error:
    raise missing("normflows", error) from error

__all__ = ["NormflowsBijection", "NormflowsFlow", "from_normflows", "to_normflows"]


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


class NormflowsBijection(Foreign):
    """A ``normflows`` flow as a bijection from data to latent.

    Args:
        flow: A flow with an inverse. One whose methods take a ``context`` receives it.
    """

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.flow = flow
        self.uses_context = "context" in inspect.signature(flow.forward).parameters

    def _call(self, x: Tensor, context: Tensor | None, *, inverse: bool) -> tuple[Tensor, Any]:
        return (self.flow if inverse else self.flow.inverse)(x, **given(self, context=context))


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
    return NormflowsFlow(on_vectors(bijection, view))


def from_normflows(flow: Flow) -> NormflowsBijection:
    """Return a ``normflows`` flow (latent to data) as a bijection (data to latent)."""
    return NormflowsBijection(flow)
