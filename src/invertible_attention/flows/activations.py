"""Nonlinearities whose Lipschitz constant is 1."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from invertible_attention.lipschitz.module_bound import register_lipschitz_bound

__all__ = ["LipSwish", "make_activation"]


class LipSwish(nn.Module):
    r"""Swish divided by its Lipschitz constant, :math:`x\, \sigma(\beta x) / 1.1`, :math:`\beta > 0` learned.

    Its second derivative does not vanish where its first is near 1, which keeps the gradient of the
    log-determinant alive.

    References:
        Chen et al. 2019, Residual Flows, Section 3.3; :math:`\sup_t |d\,(t \sigma(t))/dt| \approx 1.0998`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.raw_beta = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function elementwise."""
        return x * torch.sigmoid(x * F.softplus(self.raw_beta)) / 1.1


register_lipschitz_bound(LipSwish, 1.0)  # for every slope

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"elu": nn.ELU, "lipswish": LipSwish}


def make_activation(name: str) -> nn.Module:
    """Return a new activation.

    Raises:
        ValueError: If the name is unknown.
    """
    if name not in _ACTIVATIONS:
        raise ValueError(f"activation must be one of {tuple(_ACTIVATIONS)}, got {name!r}")
    return _ACTIVATIONS[name]()
