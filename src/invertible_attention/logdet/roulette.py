"""The unbiased log-determinant: a series cut off at random, its terms reweighted."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from invertible_attention._differentiation import derivatives_wanted
from invertible_attention._mapped import plain
from invertible_attention.logdet.base import LogDetEstimator
from invertible_attention.logdet.exact import Exact
from invertible_attention.logdet.probes import (
    ProbeDistribution,
    check_generator,
    check_probes,
    check_seed,
    draw_probe,
    seeded_generator,
)
from invertible_attention.logdet.remainder import ShortSeries, as_number
from invertible_attention.logdet.series import (
    Expand,
    Gradient,
    Terms,
    TruncatedSeries,
    check_gradient,
    estimate,
)

__all__ = ["RussianRoulette", "TailDistribution"]

TailDistribution = Literal["geometric", "poisson"]

# Of the default tail, so that a thousand terms are evaluated on average at most, however near to 1 the bound is.
_MOST_LIKELY = 0.999

# Samples of a batch, so that small batches do not become too noisy.
_FEWEST = 2

# Of a batch, where it has more numbers than that: benchmarks/subsample.py has the times of both by size.
_SHARE = 0.0625
_SMALL_BATCH = 16_384

# Product by product, as the series is: branches need not support torch.vmap.
_EXACT = Exact(chunk_size=1)


@dataclass(frozen=True)
class RussianRoulette(LogDetEstimator):
    r"""An unbiased estimate of the log-determinant and of its gradient (Chen et al. 2019).

    .. math::

        \log\det(I + J) = \mathbb{E}_{n, v}\Big[ \sum_{k=1}^{m + n} \frac{(-1)^{k+1}}{k}
        \frac{v^\top J^k v}{P(n \ge k - m)} \Big]

    with :math:`m` exact terms, which are always evaluated, and a random number :math:`n \ge 0` of further
    ones, drawn once per call and probe. The value is this estimate in training and in evaluation, whatever
    the gradient.

    Of a branch with a linear part, such as attention, that is the control variate: its determinant is known, and the
    series is that of what is left, of which one or two terms leave a remainder that is rarely worth estimating. It
    needs no more than the series above to be unbiased; see :mod:`invertible_attention.logdet.remainder`. In training
    it is estimated on a random subset of a large batch (``subsample``), since its products are most of a step's cost.

    In evaluation samples of few dimensions get the log-determinant itself, from the whole Jacobian: that takes no more
    products than the estimate does, and leaves nothing to chance.

    The variance is finite where :math:`c^2` is below the probability to continue, :math:`c` being the
    Lipschitz constant of the branch. With ``continuation=None`` a geometric tail continues with probability
    :math:`\max(1/2, c^{3/2})` where :math:`c` is known, between the smallest that keeps the variance finite,
    :math:`c^2`, and the one that makes variance times cost smallest, :math:`c`; but never more than 0.999, so that
    the expected number of further terms is below 1000 however near :math:`c` is to 1. Any probability leaves the mean
    right, and :meth:`has_finite_variance` says whether this one promises more. A Poisson tail always falls off faster
    than the series; its estimate has no finite variance in theory, though its mean is right (Residual Flow uses it).

    Args:
        exact_terms: :math:`m` in training.
        evaluation_exact_terms: :math:`m` in evaluation, where fewer surprises are worth more work.
        exact_dimensions: In evaluation, most dimensions of a sample that is not left to chance; 0 for none.
        tail: ``"geometric"`` or ``"poisson"``.
        continuation: Of a geometric tail, the probability to continue after each term; 1/2 where neither it nor
            a Lipschitz constant is known.
        rate: Of a Poisson tail, its mean.
        probes: Over how many probes, each with its own :math:`n`, the estimate is averaged.
        distribution: ``"gaussian"`` or ``"rademacher"`` probes.
        gradient: ``"neumann"`` or ``"autograd"``, which keeps the graph of the whole series.
        memory_saving: Whether the Neumann gradient evaluates the branch again in backward instead of keeping its graph.
            ``None``, as here: where it has no linear part, so that its series takes many products. Only then changes of
            weights through ``.data`` before backward are noticed. The gradient can be differentiated once;
            use ``gradient="autograd"`` for higher derivatives.
        generator: Where probes and :math:`n` come from in training, and in evaluation without a seed; by default
            torch's global generator.
        control_variate: Whether to use the linear part of a branch that has one.
        subsample: In training with gradients, the fraction of the batch on which the correction to the linear part is
            estimated, at least two samples; ``None``, as here, for a sixteenth of a batch of more than 16,384 numbers
            and for all of a smaller one, of which a second evaluation costs more than it saves. :math:`b` of :math:`B`
            samples are drawn, each is weighted by :math:`B/b`, and the branch is evaluated on them a second time. The
            variance of the batch mean stays small; the standard deviation of a single sample's estimate grows by
            :math:`\sqrt{B/b - 1}` times its correction. Use 1, the whole batch, for a loss that is nonlinear in single
            log-determinants, and for a branch that is random or has hooks.
        seed: In evaluation, makes all draws a function of the batch, so that the same question has the same answer, as
            it does by default in a block that is given no estimator; ``None``, as here, to draw again each time.

    Raises:
        ValueError: If an argument is out of its range.

    References:
        Chen, Behrmann, Duvenaud, Jacobsen 2019, Residual Flows for Invertible Generative Modeling,
        Theorems 1 and 2, Appendix C.

    Examples:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> x = torch.zeros(5000, 3)
        >>> value, logdet = RussianRoulette(exact_terms=9)(lambda x: 0.5 * x, x, training=True)
        >>> round(logdet.mean().item(), 1)  # the truth is 3 log 1.5 = 1.2164
        1.2
    """

    exact_terms: int = 2
    evaluation_exact_terms: int = 20
    tail: TailDistribution = "geometric"
    continuation: float | None = None
    rate: float = 2.0
    probes: int = 1
    distribution: ProbeDistribution = "gaussian"
    gradient: Gradient = "neumann"
    memory_saving: bool | None = None
    generator: torch.Generator | None = field(default=None, compare=False, repr=False)
    control_variate: bool = True
    exact_dimensions: int = 20
    seed: int | None = None
    subsample: float | None = None

    def __post_init__(self) -> None:
        for name in ("exact_terms", "evaluation_exact_terms", "exact_dimensions"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.tail not in get_args(TailDistribution):
            raise ValueError(f"tail must be one of {get_args(TailDistribution)}, got {self.tail!r}")
        if self.continuation is not None and not 0 < self.continuation < 1:
            raise ValueError(f"continuation must lie between 0 and 1, got {self.continuation}")
        if self.subsample is not None and not 0 < self.subsample <= 1:
            raise ValueError(f"subsample must be greater than 0 and at most 1, got {self.subsample}")
        if not self.rate > 0:
            raise ValueError(f"rate must be positive, got {self.rate}")
        check_probes(self.probes, self.distribution)
        check_gradient(self.gradient)
        check_seed(self.seed)

    def has_finite_variance(self, lipschitz: float | Tensor) -> bool:
        """Whether value and gradient have a finite variance for every branch with this constant."""
        c = _as_float(lipschitz)
        return self.tail == "geometric" and c < 1 and c * c < self._continuation(c)

    def survival(self, k: int, lipschitz: float | Tensor | None = None) -> float:
        """Return the probability of at least ``k`` terms beyond the exact ones."""
        if k <= 0:
            return 1.0
        if self.tail == "geometric":
            return self._continuation(lipschitz) ** k
        return _poisson_survival(k, self.rate)

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
        """Return ``g(x)`` and an unbiased log-determinant. See :class:`LogDetEstimator`."""
        if not training and x.ndim > 1 and math.prod(x.shape[1:]) <= self.exact_dimensions:
            return _EXACT(branch, x, args)
        check_generator(self.generator)
        if not training and self.seed is not None:
            self = replace(self, generator=seeded_generator(x, self.seed))
        wanted = derivatives_wanted() and self.gradient == "neumann"
        exact = self.exact_terms if training else max(self.exact_terms, self.evaluation_exact_terms)

        c = _as_float(lipschitz)

        def tail() -> list[float]:
            return [1 / self.survival(k, c) for k in range(1, self._draw_tail(c) + 1)]

        def expansion() -> Expand:
            weights = [1.0] * exact + tail()
            plain = TruncatedSeries(Terms(value=weights, neumann=weights))
            return ShortSeries(exact, self._uniform, tail, gradient=wanted, otherwise=plain)

        return estimate(
            branch,
            x,
            args,
            parameters,
            lambda like: draw_probe(like, self.distribution, self.generator),
            [expansion() for _ in range(self.probes)],
            gradient=self.gradient,
            memory_saving=self.memory_saving,
            control_variate=self.control_variate,
            choose=self._choose if training and derivatives_wanted() else None,
        )

    def _choose(self, x: Tensor) -> Tensor | None:
        """Choose some samples of a batch at random, each with the same chance; ``None`` for all."""
        share = self.subsample
        if share is None:
            share = _SHARE if x.numel() > _SMALL_BATCH else 1.0
        count = max(_FEWEST, math.ceil(share * len(x)))
        if count >= len(x):
            return None
        device = x.device if self.generator is None else self.generator.device
        return torch.rand(len(x), generator=self.generator, device=device).topk(count).indices.to(x.device)

    def _uniform(self) -> float:
        """Draw from the unit interval, on the CPU so that no device is waited for."""
        device = "cpu" if self.generator is None else self.generator.device
        return _any(torch.rand((), generator=self.generator, dtype=torch.float64, device=device))

    def _continuation(self, lipschitz: float | Tensor | None) -> float:
        if self.continuation is not None:
            return self.continuation
        c = _as_float(lipschitz)
        return min(max(0.5, c**1.5), _MOST_LIKELY) if c < 1 else 0.5

    def _draw_tail(self, lipschitz: float | Tensor | None) -> int:
        """Draw the number of terms beyond the exact ones."""
        uniform = self._uniform()
        if self.tail == "geometric":
            # P(n ≥ k) = pᵏ is P(u ≤ pᵏ); 1 - u lies in (0, 1], so the logarithm is finite.
            return math.floor(math.log(1 - uniform) / math.log(self._continuation(lipschitz)))
        count = 0
        while uniform < _poisson_survival(count + 1, self.rate):
            count += 1
        return count


def _any(scalar: Tensor) -> float:
    """Return a scalar as a number; of those that ``vmap(randomness="different")`` makes of it, one."""
    scalar = plain(scalar)
    return (scalar.flatten()[0] if scalar.ndim else scalar).item()


def _as_float(lipschitz: float | Tensor | None) -> float:
    # Any number does, with terms weighted for it; of an ensemble's, the largest.
    return math.inf if lipschitz is None else as_number(lipschitz)


def _poisson_survival(k: int, rate: float) -> float:
    """Return ``P(n ≥ k)``, summed from the far end: one minus a sum near one would lose the digits."""
    term = math.exp(k * math.log(rate) - rate - math.lgamma(k + 1))
    total, j = 0.0, k
    while term > total * 1e-17 or j < rate:
        total += term
        j += 1
        term *= rate / j
    return total
