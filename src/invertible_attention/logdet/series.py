r"""The power series of :math:`\log\det(I + J)` with stochastic traces, and its three gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple, Protocol, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from invertible_attention._differentiation import (
    derivatives_wanted,
    first_order_only,
    functional_transforms_active,
)
from invertible_attention._linear_part import LinearPart, linear_part_of
from invertible_attention.logdet.linearization import Linearization, full_precision, promote
from invertible_attention.logdet.memory_saving import captured_tensors, recomputed_gradient, surrogate
from invertible_attention.logdet.probes import average, inner_product

__all__ = ["Expansion", "Gradient", "Terms", "TruncatedSeries", "check_gradient", "estimate"]

Gradient = Literal["autograd", "neumann"]

_ONCE = (
    "the Neumann gradient of the log-determinant can be differentiated no further: it is right in the mean, its "
    "derivative is not. Use gradient='autograd' for higher derivatives"
)


class Expansion(NamedTuple):
    """What one probe :math:`v` contributes.

    Attributes:
        value: Estimates :math:`\\log\\det(I + J) - \\log\\det(I + J_0)`, per sample.
        left: :math:`w`, with :math:`w^\\top \\partial J\\, v` estimating the gradient of the first of these.
        reference: :math:`w_0`, likewise for the second; ``None`` without a linear part, :math:`J_0 = 0`.
    """

    value: Float[Tensor, " batch"]
    left: Tensor
    reference: Tensor | None


class Expand(Protocol):
    """A series in products with :math:`J`, for one probe."""

    def __call__(
        self, linear: Linearization, part: LinearPart | None, probe: Tensor, *, differentiable: bool
    ) -> Expansion:
        """Evaluate it, ``differentiable`` if asked for."""
        ...


class Terms(NamedTuple):
    r"""Weights :math:`c_1, c_2, \dots` of the terms a probe evaluates.

    Attributes:
        value: Those of :math:`\log\det(I + J) = \sum_{k \ge 1} (-1)^{k+1} \operatorname{tr}(J^k) / k`.
        neumann: Those of :math:`(I + J)^{-1} = \sum_{k \ge 0} (-1)^k J^k`, from :math:`k = 1` on.
    """

    value: Sequence[float]
    neumann: Sequence[float]


class TruncatedSeries(NamedTuple):
    """The weighted series in :math:`J`, less that in :math:`J_0` with the same weights."""

    terms: Terms

    def __call__(
        self, linear: Linearization, part: LinearPart | None, probe: Tensor, *, differentiable: bool
    ) -> Expansion:
        """Evaluate every term that has a weight."""
        # The terms are added up before they meet the probe.
        total = None
        product, left = probe, probe
        known, reference = probe, probe
        for k, (c_value, c_neumann) in enumerate(
            zip(self.terms.value, self.terms.neumann, strict=True), start=1
        ):
            product = linear.vjp(product, differentiable=differentiable)
            sign = -1.0 if k % 2 else 1.0
            left = left.add(product, alpha=sign * c_neumann)
            difference = product
            if part is not None:
                known = part.apply(known, transposed=True)
                reference = reference.add(known, alpha=sign * c_neumann)
                difference = product - known
            factor = -sign * c_value / k
            total = factor * difference if total is None else total.add(difference, alpha=factor)
        value = inner_product(torch.zeros_like(probe) if total is None else total, probe)
        return Expansion(value, left, None if part is None else reference)


def check_gradient(gradient: str) -> None:
    """Raise :class:`ValueError` for a gradient estimator that does not exist."""
    if gradient not in get_args(Gradient):
        raise ValueError(f"gradient must be one of {get_args(Gradient)}, got {gradient!r}")


def estimate(
    branch: Callable[..., Tensor],
    x: Float[Tensor, "batch *event"],
    args: Sequence[Tensor | None],
    parameters: Sequence[Tensor],
    draw: Callable[[Tensor], Tensor],
    expansions: Sequence[Expand],
    *,
    gradient: Gradient,
    memory_saving: bool | None,
    control_variate: bool = True,
    choose: Callable[[Tensor], Tensor | None] | None = None,
) -> tuple[Tensor, Float[Tensor, " batch"]]:
    r"""Return ``g(x)`` and the log-determinant, averaged over one probe per entry of ``expansions``.

    Where the branch has a linear part :math:`J_0`, that is its determinant plus a series of what is left, with the same
    probes for both, and so is the gradient. Of a batch of :math:`B` the series may be evaluated for :math:`b` samples
    alone, chosen at random, and count :math:`B/b` times for each of them and not at all for the others.

    ``gradient="autograd"`` differentiates the series itself and keeps its graph.

    ``gradient="neumann"`` replaces the gradient, not the value, by that of

    .. math:: w^\top J v, \qquad w^\top = v^\top \sum_{k \ge 0} (-1)^k c_k J^k

    with :math:`v` and :math:`w` held constant (Chen et al. 2019, Theorem 2), whose expectation is
    :math:`\operatorname{tr}((I+J)^{-1} \partial J) = \partial \log\det(I+J)`. With ``memory_saving``
    nothing is kept but ``x``, :math:`v` and :math:`w`; backward evaluates the branch once more.

    Args:
        branch: The residual branch.
        x: The point.
        args: Further arguments of the branch.
        parameters: See :class:`LogDetEstimator`.
        draw: Draws a probe like its argument.
        expansions: The series, one entry per probe; without any, the determinant of the linear part alone.
        gradient: ``"autograd"`` or ``"neumann"``.
        memory_saving: Whether the Neumann gradient recomputes the branch; with ``None`` it does where the branch has no
            linear part.
        control_variate: Whether to use the linear part of a branch that has one.
        choose: Chooses, given the batch, the samples of the series, or ``None`` for all; by default all.
    """
    branch, x, args = promote(branch, x, args)
    offers = control_variate and hasattr(branch, "linear_part")
    differentiate = derivatives_wanted()
    autograd = differentiate and gradient == "autograd"

    def attaches(known: bool) -> bool:
        saving = not known if memory_saving is None else memory_saving
        return differentiate and (autograd or not saving or functional_transforms_active())

    def part_at(point: Tensor, given: Sequence[Tensor | None]) -> LinearPart | None:
        with full_precision(x), torch.set_grad_enabled(attaches(True)):
            return linear_part_of(branch, point, given) if offers else None

    part = part_at(x, args)
    on = partial(
        _estimate,
        branch,
        parameters=parameters,
        draw=draw,
        differentiate=differentiate,
        autograd=autograd,
        attached=attaches(part is not None),
    )
    rows = choose(x) if choose is not None and part is not None else None
    value, logdet = on(x, args, part, expansions=expansions if rows is None else ())
    if rows is not None:
        x, args = x[rows], [None if arg is None else arg[rows] for arg in args]
        select: Callable[[Tensor], LinearPart | None] | None = getattr(part, "select", None)
        part = part_at(x, args) if select is None else select(rows)
        _, series = on(x, args, part, expansions=expansions, determinant=False)
        logdet = logdet.to(series.dtype).index_add(0, rows, series * (len(value) / len(rows)))
    return value, logdet


def _estimate(
    branch: Callable[..., Tensor],
    x: Tensor,
    args: Sequence[Tensor | None],
    part: LinearPart | None,
    *,
    expansions: Sequence[Expand],
    parameters: Sequence[Tensor],
    draw: Callable[[Tensor], Tensor],
    differentiate: bool,
    autograd: bool,
    attached: bool,
    determinant: bool = True,
) -> tuple[Tensor, Float[Tensor, " batch"]]:
    """Return ``g(x)`` and the estimate for all samples, or what is added to the determinant of the linear part.

    The linear part is given, and has its graph if that of the branch is kept.
    """
    with full_precision(x):
        probes = [draw(x) for _ in expansions]
        constants = args if attached else [None if arg is None else arg.detach() for arg in args]
        linear = Linearization(branch, x, constants, attached=attached)
        # First of all, so that what a linear part keeps of it has its graph.
        with torch.set_grad_enabled(attached):
            known = part.log_determinant() if part is not None and determinant else None
        with torch.set_grad_enabled(autograd):
            found = [
                expand(linear, part, probe, differentiable=autograd)
                for expand, probe in zip(expansions, probes, strict=True)
            ]
            logdet = average([expansion.value for expansion in found], like=x)
        value = linear.value if attached else linear.value.detach()
        if not autograd:
            # Without a graph they have none, but a transform may have given them tangents.
            logdet = logdet.detach()
        left = [e.left.detach() for e in found]
        reference = [e.reference.detach() for e in found if e.reference is not None]
        if attached and not autograd and found:
            slope = first_order_only(surrogate(linear, part, left, reference, probes), _ONCE)
            logdet = logdet + (slope - slope.detach())
        logdet = logdet if known is None else logdet + known
        if differentiate and not attached:
            return recomputed_gradient(
                branch,
                x,
                args,
                parameters,
                linear=linear,
                logdet=logdet,
                left=left,
                reference=reference,
                right=probes,
                determinant=known is not None,
            )
        if attached and not (x.requires_grad or functional_transforms_active()):
            # The point stands for x there, and of it nobody asks a gradient.
            attached = bool(captured_tensors(linear.value, parameters, [linear.point]))
            return (value, logdet) if attached else (value.detach(), logdet.detach())
        return value, logdet
