"""Search for a second input with the same output: finding one proves that a map is not injective."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from invertible_attention.lipschitz.jacobian import Jacobian, inner, norm, per_sample

__all__ = ["SecondPreimage", "find_second_preimage"]

Batch = Float[Tensor, "batch *event"]
Map = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class SecondPreimage:
    """What the search found, per sample.

    Attributes:
        point: An input far from ``x`` with the same output; ``x`` itself where none was found.
        distance: Its Euclidean distance to ``x``, NaN where none was found.
        residual: Distance of the outputs, relative to one plus the norm of the output; NaN likewise.
    """

    point: Batch
    distance: Float[Tensor, " batch"]
    residual: Float[Tensor, " batch"]

    @property
    def found(self) -> Bool[Tensor, " batch"]:
        """Where the map was shown not to be injective."""
        return self.distance.isfinite()


def find_second_preimage(
    function: Map,
    x: Batch,
    starts: Iterable[Batch],
    *,
    tolerance: float,
    separation: float = 0.01,
    iterations: int = 100,
    products: int = 20,
    budget: int = 400,
) -> SecondPreimage:
    r"""Look for :math:`x' \neq x` with :math:`f(x') = f(x)`.

    From every start, minimize the deflated residual
    :math:`(1 + s^2/\|x'-x\|^2)\,(f(x') - f(x))`, which no longer vanishes at :math:`x`, by Levenberg–Marquardt
    with conjugate gradients. Nothing found proves nothing; something found is a proof up to the tolerance, and
    means that no solver can know which of the two inputs was meant.

    Args:
        function: ``function(y, index)`` evaluates the map at ``y`` for the samples ``index`` of the batch.
        x: Inputs.
        starts: Where to start, tried one after another until a sample is settled.
        tolerance: Largest relative residual that counts as the same output.
        separation: Smallest distance that counts as another input, relative to ``1 + ‖x‖``.
        iterations: Most steps per start; it is given up sooner where ten steps gain less than a tenth.
        products: Most conjugate gradient steps per step, each one product with the Jacobian and its transpose.
        budget: Most conjugate gradient steps in all; one start gets at most a quarter of it.

    References:
        Farrell, Birkisson, Funke 2015, *Deflation techniques for finding distinct solutions*.
    """
    everything = torch.arange(len(x), device=x.device)
    with torch.no_grad():
        z = function(x, everything)
    radius = separation * (1 + norm(x))
    scale = 1 + norm(z)
    point = x.clone()
    distance = torch.full_like(radius, torch.nan)
    residual, spent = distance.clone(), 0
    for start in starts:
        left = torch.nonzero(distance.isnan() & (scale.isfinite())).flatten()
        if not len(left) or spent >= budget:
            break
        problem = _Deflated(lambda y, index=left: function(y, index), x[left], z[left], radius[left])
        y, error = problem.minimize(start[left], tolerance * scale[left], iterations, products, budget // 4)
        spent += problem.spent
        apart = norm(y - x[left])
        same = (error <= tolerance * scale[left]) & (apart > radius[left])
        index = left[same]
        point[index], distance[index] = y[same], apart[same]
        residual[index] = error[same] / scale[index]
    return SecondPreimage(point, distance, residual)


class _Deflated:
    """The residual ``f(y) − z``, kept from vanishing at ``x``."""

    def __init__(self, function: Callable[[Tensor], Tensor], x: Tensor, z: Tensor, radius: Tensor) -> None:
        self.function, self.x, self.z, self.radius = function, x, z, radius
        self.spent = 0

    def weight(self, y: Tensor) -> Tensor:
        return 1 + (10 * self.radius / norm(y - self.x)) ** 2

    def minimize(
        self, y: Tensor, goal: Tensor, iterations: int, products: int, budget: int
    ) -> tuple[Tensor, Float[Tensor, " batch"]]:
        """Return the last iterate and the norm of its (undeflated) residual."""
        y = self._pushed_out(y)
        damping = torch.full_like(goal, 1e-2)
        checked = torch.full_like(goal, torch.inf)
        for iteration in range(iterations):
            jacobian = Jacobian(self.function, y)
            r = jacobian.value - self.z
            if self.spent >= budget or bool((norm(r) <= goal).all()):
                break
            if iteration % 10 == 0:
                height = norm(r) * self.weight(y)
                if not bool(((height < 0.9 * checked) & (norm(r) > goal)).any()):
                    break
                checked = height
            step = self._step(jacobian, y, r, damping, products)
            trial = y + step
            with torch.no_grad():
                r_trial = self.function(trial) - self.z
            # written so that a trial which is not finite is refused
            better = norm(r_trial) * self.weight(trial) < norm(r) * self.weight(y)
            better = better & (norm(r) > goal)
            y = torch.where(per_sample(better, y), trial, y)
            damping = torch.where(better, damping * 0.3, damping * 5)
        with torch.no_grad():
            return y, norm(self.function(y) - self.z)

    def _pushed_out(self, y: Tensor) -> Tensor:
        offset = torch.where(y.isfinite(), y - self.x, 0)
        length = norm(offset)
        lost = per_sample(length == 0, offset)
        offset = torch.where(lost, torch.ones_like(offset), offset)
        length = norm(offset)
        return self.x + offset * per_sample(torch.maximum(length, self.radius) / length, offset)

    def _step(self, jacobian: Jacobian, y: Tensor, r: Tensor, damping: Tensor, products: int) -> Tensor:
        offset = y - self.x
        weight = per_sample(self.weight(y), y)
        slope = offset * per_sample(-2 * (10 * self.radius) ** 2 / inner(offset, offset) ** 2, y)
        weight_r = per_sample(self.weight(y), r)

        def apply(v: Tensor) -> Tensor:
            self.spent += 1
            return weight_r * jacobian.apply(v) + r * per_sample(inner(slope, v), r)

        def transpose(u: Tensor) -> Tensor:
            return weight * jacobian.apply_transpose(u) + slope * per_sample(inner(r, u), slope)

        def normal(v: Tensor) -> Tensor:
            return transpose(apply(v)) + per_sample(damping, v) * v

        return _conjugate_gradients(normal, -transpose(weight_r * r), products)


def _conjugate_gradients(operator: Callable[[Tensor], Tensor], b: Tensor, steps: int) -> Tensor:
    solution, residual, direction = torch.zeros_like(b), b, b
    square = inner(b, b)
    tiny = torch.finfo(square.dtype).tiny
    goal = 1e-4 * square
    for _ in range(steps):
        if not bool((square > goal).any()):
            break
        image = operator(direction)
        length = square / inner(direction, image).clamp_min(tiny)
        solution = solution + per_sample(length, b) * direction
        residual = residual - per_sample(length, b) * image
        square, before = inner(residual, residual), square
        direction = residual + per_sample(square / before.clamp_min(tiny), b) * direction
    return solution
