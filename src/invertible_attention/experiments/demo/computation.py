"""Everything the page shows of a picture, computed: two networks, forward, inverse, and what can be promised."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn

from ...flows import Sequential
from ...lipschitz.bind import bind
from ...lipschitz.local import local_lipschitz_estimate
from ..data import dequantize, to_pixels, to_tensor
from ..data.preparation import cover
from ..reconstruct.configuration import Cell, Configuration
from ..reconstruct.network import block_of, build_network, initialize
from ..reconstruct.study import solver_curves
from .options import Options

__all__ = ["RECOVERED", "Outcome", "Side", "compute"]

LEARNING_RATE = 0.003
TOLERANCE = 1e-6
RECOVERED = 10.0
"""Mean squared error on 0–255 below which the paper counts an image as recovered (its V-score)."""

Report = Callable[[float, str], None]
"""Called with the share that is done, and what is being done."""

Picture = Float[Tensor, "1 3 size size"]


@dataclass(frozen=True)
class Side:
    """What one network did to the picture.

    Args:
        constraint: ``"certified"``, ``"relaxed"`` or ``"released"``.
        network: squeeze and attention, trained.
        latent: :math:`z = f(x)`, in the picture's shape.
        reconstruction: what the inverse returned, as the network's numbers.
        error: largest absolute error over the colors of each pixel, on 0–255; infinite where it is not finite.
        mse: mean squared error on 0–255.
        converged: whether the inverse reached its tolerance.
        evaluations: of the branch, spent by the inverse.
        residual: relative residual of what the inverse returned.
        error_bound: bound of the distance to the true inverse, infinite without a certificate.
        certificate: certified Lipschitz constant of the branch, infinite where nothing is promised.
        local_lipschitz: the one measured at this picture, a lower estimate.
        curves: by solver, the relative residual after every evaluation; ``None`` where it is not finite.
        steps: of training that were taken.
    """

    constraint: str
    network: Sequential
    latent: Picture
    reconstruction: Picture
    error: Float[Tensor, "size size"]
    mse: float
    converged: bool
    evaluations: int
    residual: float
    error_bound: float
    certificate: float
    local_lipschitz: float
    curves: dict[str, list[float | None]]
    steps: int

    @property
    def recovered(self) -> bool:
        """Whether the paper's V-score would count the picture."""
        return self.mse < RECOVERED


@dataclass(frozen=True)
class Outcome:
    """What both networks did to the same picture.

    Args:
        options: what was chosen.
        pixels: the picture as it was used.
        x: the same as the network's numbers.
        chosen: the network that was asked for.
        other: the one it is compared with.
    """

    options: Options
    pixels: UInt8[Tensor, "1 3 size size"]
    x: Picture
    chosen: Side
    other: Side


def compute(picture: Image.Image, options: Options, report: Report | None = None) -> Outcome:
    """Train two networks on a picture, map it forward and back with both, and measure.

    Both see the same picture, the same noise and the same target. The protocol is that of the paper's
    reconstruction experiment, on one picture: Adam on the mean squared error to one random normal tensor.

    Args:
        picture: of any size; its central square is used.
        options: what was chosen.
        report: called with how far the work is.
    """
    progress = report or (lambda share, what: None)
    pixels = to_tensor(cover(picture, (options.size, options.size)))[None]
    x = dequantize(pixels, generator=_generator(options.seed, 0))
    sides = []
    constraints = (options.constraint, options.other)
    for place, (constraint, text) in enumerate(zip(constraints, options.variants, strict=True)):
        start = place / 2
        network, steps = _train(
            pixels,
            x,
            options,
            constraint,
            lambda done, s=start, t=text: progress(s + 0.35 * done, f"training {t}"),
        )
        progress(start + 0.4, f"inverting {text}")
        sides.append(_look(network, x, constraint, steps, options.seed))
    return Outcome(options, pixels, x, *sides)


def _generator(seed: int, purpose: int) -> torch.Generator:
    return torch.Generator().manual_seed(3 * seed + purpose)


def _train(
    pixels: Tensor, x: Tensor, options: Options, constraint: str, progress: Callable[[float], None]
) -> tuple[Sequential, int]:
    """Return a trained network and the steps it took; training ends where the loss is not finite any more."""
    cell = Cell(options.response, constraint, options.normalization, 1)
    configuration = Configuration(dataset="photos", size=(options.size, options.size), tolerance=TOLERANCE)
    network = build_network(cell, configuration, seed=options.seed)
    initialize(network, x)
    target = torch.randn(network[0](x).shape, generator=_generator(options.seed, 1))
    noise = _generator(options.seed, 2)
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    taken = 0
    with torch.enable_grad():
        for step in range(options.steps):
            progress(step / options.steps)
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(network(dequantize(pixels, generator=noise)), target)
            loss.backward()
            if not all(p.grad is None or bool(p.grad.isfinite().all()) for p in network.parameters()):
                break
            optimizer.step()
            taken += 1
    return network.eval(), taken


@torch.no_grad()
def _look(network: Sequential, x: Picture, constraint: str, steps: int, seed: int) -> Side:
    squeeze, block = network[0], block_of(network)
    tokens = squeeze(x)
    z = block(tokens)
    solution = block.solve_inverse(z)
    local = local_lipschitz_estimate(bind(block.branch), tokens, generator=_generator(seed, 0))
    curves = solver_curves(block, z, tolerance=TOLERANCE)
    reconstruction = squeeze.inverse(solution.value)
    difference = (to_pixels(reconstruction.double()) - to_pixels(x.double())).nan_to_num(
        torch.inf, torch.inf, -torch.inf
    )
    return Side(
        constraint=constraint,
        network=network,
        latent=squeeze.inverse(z),
        reconstruction=reconstruction,
        error=difference.abs().amax(1)[0],
        mse=difference.square().mean().item(),
        converged=bool(solution.converged),
        evaluations=int(solution.evaluations),
        residual=_number(solution.residual),
        error_bound=_number(solution.error_bound),
        certificate=float(block.lipschitz_bound()),
        local_lipschitz=_number(local),
        curves={name: curve["median"] for name, curve in curves.items()},
        steps=steps,
    )


def _number(value: Tensor) -> float:
    number = float(value)
    return math.inf if math.isnan(number) else number
