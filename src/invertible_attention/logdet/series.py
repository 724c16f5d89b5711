r"""The power series of :math:`\log\det(I + J)` with stochastic traces, and its three gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from invertible_attention._differentiation import functional_transforms_active
from invertible_attention.logdet.linearization import (
    Linearization,
    full_precision,
    promote,
)
from invertible_attention.logdet.memory_saving import recomputed_gradient
from invertible_attention.logdet.probes import inner_product

__all__ = ["Gradient", "Terms", "check_gradient", "estimate"]

Gradient = Literal["autograd", "neumann"]


class Terms(NamedTuple):
    r"""Weights :math:`c_1, c_2, \dots` of the terms a probe evaluates.

    Attributes:
        value: Those of :math:`\log\det(I + J) = \sum_{k \ge 1} (-1)^{k+1} \operatorname{tr}(J^k) / k`.
        neumann: Those of :math:`(I + J)^{-1} = \sum_{k \ge 0} (-1)^k J^k`, from :math:`k = 1` on.
    """

    value: Sequence[float]
    neumann: Sequence[float]


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
    terms: Sequence[Terms],
    *,
    gradient: Gradient,
    memory_saving: bool,
) -> tuple[Tensor, Float[Tensor, " batch"]]:
    r"""Return ``g(x)`` and the weighted series, averaged over one probe per entry of ``terms``.

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
        terms: Weights, one entry per probe.
        gradient: ``"autograd"`` or ``"neumann"``.
        memory_saving: Whether the Neumann gradient recomputes the branch.
    """
    branch, x, args = promote(branch, x, args)
    with full_precision(x):
        probes = [draw(x) for _ in terms]
        differentiate = torch.is_grad_enabled()
        if differentiate and gradient == "autograd":
            linear = Linearization(branch, x, args, attached=True)
            return linear.value, _series(linear, probes, terms, differentiable=True)[0]
        if differentiate and not (memory_saving and not functional_transforms_active()):
            linear = Linearization(branch, x, args, attached=True)
            logdet, neumann = _series(linear, probes, terms)
            return linear.value, _with_gradient_of(logdet, _surrogate(linear, probes, neumann))

        constants = [None if arg is None else arg.detach() for arg in args]
        linear = Linearization(branch, x, constants, attached=False)
        logdet, neumann = _series(linear, probes, terms)
        if not differentiate:
            return linear.value.detach(), logdet
        return recomputed_gradient(
            branch, x, args, parameters, linear=linear, logdet=logdet, left=neumann, right=probes
        )


def _series(
    linear: Linearization, probes: Sequence[Tensor], terms: Sequence[Terms], *, differentiable: bool = False
) -> tuple[Float[Tensor, " batch"], list[Tensor]]:
    """Return the series and, per probe, the vector ``w`` of the Neumann series."""
    total = inner_product(probes[0], torch.zeros_like(probes[0]))
    neumann = []
    for probe, weights in zip(probes, terms, strict=True):
        product, left = probe, probe
        for k, (c_value, c_neumann) in enumerate(zip(weights.value, weights.neumann, strict=True), start=1):
            product = linear.vjp(product, differentiable=differentiable)
            sign = -1.0 if k % 2 else 1.0
            total = total - (sign * c_value / k) * inner_product(product, probe)
            left = left + (sign * c_neumann) * product.detach()
        neumann.append(left)
    return total / len(probes), neumann


def _surrogate(
    linear: Linearization, probes: Sequence[Tensor], neumann: Sequence[Tensor]
) -> Float[Tensor, " batch"]:
    """Return ``wᵀJv`` averaged over the probes: its gradient is that of the log-determinant."""
    products = [
        inner_product(linear.vjp(w, differentiable=True), v) for v, w in zip(probes, neumann, strict=True)
    ]
    return torch.stack(products).mean(0)


def _with_gradient_of(value: Tensor, surrogate: Tensor) -> Tensor:
    return value.detach() + (surrogate - surrogate.detach())
