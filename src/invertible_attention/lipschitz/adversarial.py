"""Adversarial search for the largest local Lipschitz constant: does it stay below the bound?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from invertible_attention.lipschitz.jacobian import Jacobian, norm, per_sample
from invertible_attention.lipschitz.local import local_lipschitz_estimate

__all__ = ["AdversarialLipschitz", "adversarial_lipschitz"]

Batch = Float[Tensor, "batch *event"]


@dataclass(frozen=True)
class AdversarialLipschitz:
    """The worst point an adversary found.

    Attributes:
        ratio: Largest local Lipschitz constant divided by the bound; above 1 the bound is wrong.
        constant: The local Lipschitz constant there, a lower estimate.
        bound: The bound there.
        x: The input there, ``(1, ...)``.
        parameters: The parameters there, in the order they were given.
    """

    ratio: float
    constant: float
    bound: float
    x: Tensor
    parameters: tuple[Tensor, ...]


def adversarial_lipschitz(
    branch: Callable[[Tensor], Tensor],
    x: Batch,
    steps: int = 50,
    lr: float = 0.05,
    parameters: Sequence[Tensor] | None = None,
    *,
    bound: Callable[[], Tensor] | None = None,
    refine: int = 20,
    generator: torch.Generator | None = None,
) -> AdversarialLipschitz:
    r"""Ascend :math:`\log\|J_g(x)\|_2 - \log L` in the input, and in the weights if they are given.

    Adam on the input; the singular vectors follow by one power iteration per step. The map must be twice
    differentiable by autograd. Matrix-free, so the event may be large.

    Args:
        branch: The map :math:`g`, samples independent of each other.
        x: Where to start, one ascent per sample.
        steps: Steps of Adam.
        lr: Its learning rate, in units of the inputs.
        parameters: Weights the adversary may change as well. They are restored afterwards.
        bound: Returns the bound :math:`L`; default ``branch.lipschitz_bound``, and 1 where it has none.
        refine: Krylov steps of the final estimate.
        generator: Source of the random first vector.

    Returns:
        The worst point met.

    Raises:
        ValueError: If ``steps`` is negative or ``lr`` not positive.

    Example:
        >>> x = torch.tensor([[0.7]])
        >>> found = adversarial_lipschitz(torch.sin, x, steps=100)
        >>> round(found.ratio, 3)  # the slope of the sine is largest, one, at zero
        1.0
    """
    if steps < 0:
        raise ValueError(f"steps must not be negative, got {steps}")
    if not lr > 0:
        raise ValueError(f"lr must be positive, got {lr}")
    weights = list(parameters or ())
    bound = _own_bound(branch) if bound is None else bound
    saved = [weight.detach().clone() for weight in weights]
    required = [weight.requires_grad for weight in weights]
    try:
        for weight in weights:
            weight.requires_grad_()
        worst = _ascend(branch, x, steps, lr, weights, bound, generator)
        _restore(weights, worst.weights)
        refined = local_lipschitz_estimate(branch, worst.x, steps=refine, generator=generator)
        constants = torch.maximum(refined, worst.constants)
        limit = float(bound().detach())
    finally:
        _restore(weights, saved)
        for weight, requires_grad in zip(weights, required, strict=True):
            weight.requires_grad_(requires_grad)
    index = int(constants.argmax())
    constant = float(constants[index])
    ratio = constant / limit if limit > 0 else (torch.inf if constant > 0 else 0.0)
    return AdversarialLipschitz(ratio, constant, limit, worst.x[index : index + 1], tuple(worst.weights))


@dataclass
class _Worst:
    """The worst state met: inputs, their constants (lower estimates) and the weights."""

    log_ratio: float
    x: Tensor
    constants: Tensor
    weights: list[Tensor]


def _ascend(
    branch: Callable[[Tensor], Tensor],
    x: Tensor,
    steps: int,
    lr: float,
    weights: list[Tensor],
    bound: Callable[[], Tensor],
    generator: torch.Generator | None,
) -> _Worst:
    x = x.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([x, *weights], lr=lr)
    v = _unit(torch.randn(x.shape, dtype=torch.float64, generator=generator).to(x))
    tiny = torch.finfo(torch.float32).tiny
    worst = _Worst(-torch.inf, x, norm(v), weights)
    with torch.enable_grad():
        for step in range(steps + 1):
            jacobian = Jacobian(branch, x)
            u = _unit(jacobian.apply(v))
            v = _unit(jacobian.apply_transpose(u))
            # with both singular vectors held fixed, this has the value and the gradient of the norm
            (pulled,) = torch.autograd.grad(branch(x), x, u, create_graph=True)
            constants = (pulled * v).flatten(1).sum(1).clamp_min(0)
            log_ratio = constants.clamp_min(tiny).log() - bound().clamp_min(tiny).log()
            if step == 0 or log_ratio.max().item() > worst.log_ratio:
                copies = [tensor.detach().clone() for tensor in (x, constants, *weights)]
                worst = _Worst(log_ratio.max().item(), copies[0], copies[1], copies[2:])
            if step == steps or not log_ratio.requires_grad:  # the constant of an affine map has no slope
                break
            gradients = torch.autograd.grad(-log_ratio.sum(), [x, *weights], allow_unused=True)
            for tensor, gradient in zip([x, *weights], gradients, strict=True):
                tensor.grad = gradient
            optimizer.step()
            optimizer.zero_grad()
    return worst


def _restore(weights: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for weight, value in zip(weights, values, strict=True):
            weight.copy_(value)


def _own_bound(branch: Callable[[Tensor], Tensor]) -> Callable[[], Tensor]:
    return getattr(branch, "lipschitz_bound", lambda: torch.ones(()))


def _unit(v: Tensor) -> Tensor:
    return v / per_sample(norm(v).clamp_min(torch.finfo(torch.float32).tiny), v).to(v.dtype)
