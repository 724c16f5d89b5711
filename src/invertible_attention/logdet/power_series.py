"""The truncated power series of the paper."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from invertible_attention.logdet.base import LogDetEstimator
from invertible_attention.logdet.probes import (
    ProbeDistribution,
    check_generator,
    check_probes,
    draw_probe,
)
from invertible_attention.logdet.remainder import as_number
from invertible_attention.logdet.series import Gradient, Terms, TruncatedSeries, check_gradient, estimate

__all__ = ["PowerSeries"]


@dataclass(frozen=True)
class PowerSeries(LogDetEstimator):
    r"""The first terms of the series (the paper, Eq. 15; i-ResNet). **Biased.**

    .. math:: \log\det(I + J) \approx \sum_{k=1}^{K} \frac{(-1)^{k+1}}{k}\, v^\top J^k v

    Of a branch with a linear part :math:`J_0`, such as attention, the determinant of that is known, and
    :math:`J^k - J_0^k` stands for :math:`J^k`, with the same probe: what is cut off, and what the probe adds, is that
    of a small difference.

    Training on it lets the model exploit the truncation: report likelihoods with :class:`Exact` or
    :class:`RussianRoulette`.

    Args:
        terms: How many terms, :math:`K`. The paper uses 5.
        probes: Over how many probes :math:`v` each trace is averaged.
        distribution: ``"gaussian"`` (the paper) or ``"rademacher"``.
        gradient: ``"autograd"`` differentiates the series and keeps its graph, as the paper does.
            ``"neumann"`` has the same expectation; see :class:`RussianRoulette`.
        memory_saving: As in :class:`RussianRoulette`.
        generator: Where the probes come from; by default torch's global generator.
        control_variate: Whether to use the linear part of a branch that has one. The paper does not.

    Raises:
        ValueError: If a number is below 1 or a name unknown.

    References:
        Behrmann et al. 2019, Invertible Residual Networks, Section 3.2.

    Examples:
        >>> import torch
        >>> x = torch.zeros(2, 3)
        >>> value, logdet = PowerSeries(terms=5, distribution="rademacher")(lambda x: 0.5 * x, x)
        >>> logdet  # 3 (0.5 - 0.5²/2 + 0.5³/3 - 0.5⁴/4 + 0.5⁵/5), where the truth is 3 log 1.5 = 1.2164
        tensor([1.2219, 1.2219])
        >>> round(PowerSeries(terms=5, control_variate=False).truncation_bound(dim=3, lipschitz=0.5), 4)
        0.0156
    """

    terms: int = 5
    probes: int = 1
    distribution: ProbeDistribution = "gaussian"
    gradient: Gradient = "autograd"
    memory_saving: bool | None = None
    generator: torch.Generator | None = field(default=None, compare=False, repr=False)
    control_variate: bool = True

    def __post_init__(self) -> None:
        if self.terms < 1:
            raise ValueError(f"terms must be at least 1, got {self.terms}")
        check_probes(self.probes, self.distribution)
        check_gradient(self.gradient)

    def truncation_bound(self, dim: int, lipschitz: float | Tensor) -> float:
        r"""Bound the absolute bias by :math:`d\, c^{K+1} / ((K+1)(1-c))`, twice that with a control variate.

        Args:
            dim: Dimension of a sample, :math:`d`.
            lipschitz: An upper bound of the branch's Lipschitz constant, :math:`c`.

        Returns:
            The bound in nats; ``inf`` where ``lipschitz`` is not below 1.
        """
        c = as_number(lipschitz)
        if not c < 1:
            return math.inf
        series = 2 if self.control_variate else 1
        return series * dim * c ** (self.terms + 1) / ((self.terms + 1) * (1 - c))

    def __call__(
        self,
        branch: Callable[..., Tensor],
        x: Float[Tensor, "batch *event"],
        args: Sequence[Tensor | None] = (),
        *,
        parameters: Sequence[Tensor] = (),
        lipschitz: float | Tensor | None = None,
        training: bool = False,
    ) -> tuple[Float[Tensor, "batch *event"], Float[Tensor, " batch"]]:
        """Return ``g(x)`` and the truncated series. See :class:`LogDetEstimator`.

        ``lipschitz`` and ``training`` make no difference.
        """
        check_generator(self.generator)
        ones = [1.0] * self.terms
        # The derivative of K terms is a Neumann series from k = 0 to K - 1.
        terms = Terms(value=ones, neumann=[*ones[1:], 0.0])
        return estimate(
            branch,
            x,
            args,
            parameters,
            lambda like: draw_probe(like, self.distribution, self.generator),
            [TruncatedSeries(terms)] * self.probes,
            gradient=self.gradient,
            memory_saving=self.memory_saving,
            control_variate=self.control_variate,
        )
