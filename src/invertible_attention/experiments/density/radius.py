"""Whether the series behind an unbiased log-determinant converges where nothing promises it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...logdet import LogDetEstimator
from ...logdet.linearization import Linearization

__all__ = ["MeasureRadius"]


@dataclass(frozen=True)
class MeasureRadius(LogDetEstimator):
    r"""An estimator that also measures the spectral radius of the Jacobians it is given, unless certified.

    The series of :math:`\log\det(I + J)` converges, and its random truncation is unbiased, where the spectral
    radius of :math:`J` is below 1. The radius is estimated from below by the growth of :math:`v^\top J^k`,
    averaged over the second half of the iterations.

    Args:
        estimator: what computes the result.
        iterations: powers of the Jacobian.
        radii: receives one tensor of radii, one per sample, for every call without a certificate.
    """

    estimator: LogDetEstimator
    iterations: int = 40
    radii: list[Tensor] = field(default_factory=list)

    def __call__(
        self,
        branch: Callable[..., Tensor],
        x: Tensor,
        args: Sequence[Tensor | None] = (),
        *,
        parameters: Sequence[Tensor] = (),
        lipschitz: float | Tensor | None = None,
        training: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Return what the wrapped estimator returns."""
        if lipschitz is None or not float(torch.as_tensor(lipschitz).detach()) < 1:
            self.radii.append(self._radius(branch, x, args).cpu())
        return self.estimator(branch, x, args, parameters=parameters, lipschitz=lipschitz, training=training)

    def _radius(self, branch: Callable[..., Tensor], x: Tensor, args: Sequence[Tensor | None]) -> Tensor:
        linear = Linearization(branch, x, args, attached=False)
        generator = torch.Generator().manual_seed(0)
        vector = torch.randn(x.shape, generator=generator).to(x)
        total = torch.zeros(x.shape[0], dtype=torch.float64, device=x.device)
        for k in range(self.iterations):
            norm = vector.flatten(1).norm(dim=1).clamp_min(torch.finfo(x.dtype).tiny)
            vector = linear.vjp(vector / norm.view(-1, *[1] * (x.ndim - 1)))
            if k >= self.iterations // 2:
                growth = vector.flatten(1).norm(dim=1).double()
                total += growth.clamp_min(torch.finfo(x.dtype).tiny).log()
        return (total / (self.iterations - self.iterations // 2)).exp()
