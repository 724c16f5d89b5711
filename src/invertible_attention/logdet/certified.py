r"""The log-determinant up to a tolerance: series whose remainder is known for the probe drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from invertible_attention._linear_part import LinearPart
from invertible_attention.logdet.base import LogDetEstimator
from invertible_attention.logdet.linearization import Linearization
from invertible_attention.logdet.probes import (
    ProbeDistribution,
    check_generator,
    check_probes,
    check_seed,
    draw_probe,
    inner_product,
    sample_norm,
    seeded_generator,
)
from invertible_attention.logdet.remainder import as_number, remaining
from invertible_attention.logdet.series import Expansion, Gradient, check_gradient, estimate

__all__ = ["PartialSum", "Series", "partial_sums", "short_partial_sums"]

# A series that shrinks more slowly than this is left for the one that is certified to.
_SLOW = 0.9


class PartialSum(NamedTuple):
    """A series after some terms.

    Attributes:
        expansion: Its value and the vectors of its gradient.
        remainder: Upper bound of what further terms add to the value, per sample.
    """

    expansion: Expansion
    remainder: Float[Tensor, " batch"]


def partial_sums(
    linear: Linearization, part: LinearPart | None, probe: Tensor, c: float, *, differentiable: bool = False
) -> Iterator[PartialSum]:
    r"""Yield the partial sums of the series in :math:`J`, less that in :math:`J_0`.

    With :math:`w_K = (J^\top)^K v` what is left after :math:`K` terms is at most
    :math:`\|w_K\| \|v\| c / ((K+1)(1-c))`, and likewise for :math:`J_0`.

    Args:
        linear: The branch.
        part: Its linear part, if it has one.
        probe: The probe :math:`v`.
        c: Lipschitz constant of the branch, below 1.
        differentiable: Whether products are.
    """
    size = sample_norm(probe) * c / (1 - c)
    value = inner_product(probe, torch.zeros_like(probe))
    product = left = known = reference = probe
    count = 0
    while True:
        count += 1
        sign = (-1) ** count
        product = linear.vjp(product, differentiable=differentiable)
        trace, norm = inner_product(product, probe), sample_norm(product)
        left = left + sign * product.detach()
        if part is not None:
            known = part.apply(known, transposed=True)
            trace, norm = trace - inner_product(known, probe), norm + sample_norm(known)
            reference = reference + sign * known.detach()
        value = value - sign / count * trace
        expansion = Expansion(value, left, None if part is None else reference)
        yield PartialSum(expansion, norm * size / (count + 1))


def short_partial_sums(
    linear: Linearization, part: LinearPart, probe: Tensor, c: float, *, differentiable: bool = False
) -> Iterator[PartialSum]:
    r"""Yield the partial sums of the series in :math:`M`; see :mod:`invertible_attention.logdet.remainder`.

    With :math:`w_K = (M^\top)^K v` the remainder is
    :math:`(-1)^K \int_0^1 s^{K-1} w_K^\top \big(1 - (I + sM)^{-1}\big) v\, ds`, hence at most
    :math:`\|w_K\| \big(\|v\| + \|(I + J_0) v\| / (1 - c)\big) / K`, whatever the size of :math:`M`.

    Args:
        linear: The branch.
        part: Its linear part.
        probe: The probe :math:`v`.
        c: Lipschitz constant of the branch, below 1.
        differentiable: Whether products are.
    """
    size = sample_norm(probe) + sample_norm(probe + part.apply(probe)) / (1 - c)
    value = inner_product(probe, torch.zeros_like(probe))
    reference = part.solve(probe, transposed=True)
    vector, left = probe, torch.zeros_like(probe)
    count = 0
    while True:
        solved = part.solve(vector, transposed=True) if count else reference
        left = left + (-1) ** count * solved.detach()
        vector = remaining(linear, part, solved, differentiable)
        count += 1
        value = value - (-1) ** count / count * inner_product(vector, probe)
        yield PartialSum(Expansion(value, left, reference.detach()), sample_norm(vector) * size / count)


class _UpTo(NamedTuple):
    """The first partial sum whose remainder is below a tolerance, of the shorter series if that gets there."""

    tolerance: float
    c: float

    def __call__(
        self, linear: Linearization, part: LinearPart | None, probe: Tensor, *, differentiable: bool
    ) -> Expansion:
        if part is not None:
            before = torch.inf
            for step in short_partial_sums(linear, part, probe, self.c, differentiable=differentiable):
                bound = as_number(step.remainder)
                if bound <= self.tolerance:
                    return step.expansion
                if not bound < _SLOW * before:
                    break
                before = bound
        for step in partial_sums(linear, part, probe, self.c, differentiable=differentiable):
            bound = as_number(step.remainder)
            # What is not finite does not become so by further terms.
            if not self.tolerance < bound < torch.inf:
                return step.expansion
        raise AssertionError("unreachable: the series has no end")


@dataclass(frozen=True)
class Series(LogDetEstimator):
    r"""As many terms as leave less than a tolerance, certified for the probe drawn.

    For a branch with a Lipschitz constant :math:`c < 1`, what is left of the power series after :math:`K` terms is at
    most :math:`\|w_K\| \|v\| c / ((K+1)(1-c))` with :math:`w_K = (J^\top)^K v`, which is known and far below the bound
    of the bias that :meth:`PowerSeries.truncation_bound` gives. Of a branch with a linear part, such as attention, one
    or two terms are enough.

    What is left to chance is the probe: a trace is estimated, without bias, by :math:`v^\top A v`. In evaluation the
    probes are a function of the batch, so that the same question has the same answer; in training they are drawn.

    Args:
        tolerance: What truncation may change the value of a sample by, in nats.
        probes: Over how many probes it is averaged.
        distribution: ``"rademacher"`` or ``"gaussian"`` probes.
        gradient: As in :class:`RussianRoulette`; it is truncated where the value is.
        memory_saving: Likewise.
        seed: Makes other probes of the same point in evaluation; ``None`` to draw them there too.
        generator: Where probes come from in training, and in evaluation without a seed; by default torch's global
            generator.
        control_variate: Whether to use the linear part of a branch that has one.

    Raises:
        ValueError: If an argument is out of its range; in a call, if no Lipschitz constant below 1 is known.

    Examples:
        >>> import torch
        >>> x = torch.zeros(2, 3)
        >>> value, logdet = Series(tolerance=1e-4)(lambda x: 0.5 * x, x, lipschitz=0.5)
        >>> logdet  # the truth is 3 log 1.5 = 1.2164
        tensor([1.2164, 1.2164])
    """

    tolerance: float = 1e-2
    probes: int = 1
    distribution: ProbeDistribution = "rademacher"
    gradient: Gradient = "neumann"
    memory_saving: bool | None = None
    seed: int | None = 0
    generator: torch.Generator | None = field(default=None, compare=False, repr=False)
    control_variate: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.tolerance < torch.inf:
            raise ValueError(f"tolerance must be a positive number, got {self.tolerance}")
        check_probes(self.probes, self.distribution)
        check_gradient(self.gradient)
        check_seed(self.seed)

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
        """Return ``g(x)`` and its log-determinant. See :class:`LogDetEstimator`."""
        c = None if lipschitz is None else as_number(lipschitz)
        if c is None or not c < 1:
            raise ValueError(
                f"Series needs a Lipschitz constant below 1, got {c}: use RussianRoulette for a branch without one"
            )
        generator = self.generator
        if training or self.seed is None:
            check_generator(generator)
        else:
            generator = seeded_generator(x, self.seed)
        return estimate(
            branch,
            x,
            args,
            parameters,
            lambda like: draw_probe(like, self.distribution, generator),
            [_UpTo(self.tolerance, c)] * self.probes,
            gradient=self.gradient,
            memory_saving=self.memory_saving,
            control_variate=self.control_variate,
        )
