"""What the page says, in sentences made from the numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from ..report import format_number

if TYPE_CHECKING:
    from .computation import Outcome, Side

__all__ = ["NAMES", "TITLES", "attention_words", "headline", "honesty", "table"]

NAMES = {"certified": "certified", "relaxed": "relaxed", "released": "authors’ code"}
"""What the networks are called within a sentence."""

TITLES = {"certified": "Certified", "relaxed": "Relaxed", "released": "The authors’ code"}
"""What they are called above their results."""

ALMOST_EVEN = 0.01
"""Relative difference of weights up to which they are called almost the same."""


def headline(outcome: Outcome) -> list[str]:
    """Return what happened to both networks' reconstructions, the chosen one first."""
    return [_happened(outcome.chosen), _happened(outcome.other)]


def _happened(side: Side) -> str:
    error = f"mean squared error {format_number(side.mse, 2)} on 0–255"
    if side.constraint == "certified":
        end = "came back" if side.recovered and side.converged else "did NOT come back"
        return (
            f"Certified: the picture {end} after {side.evaluations} evaluations, {error}. Its distance from the true "
            f"inverse is at most {format_number(side.error_bound, 2)}: proved, not only measured."
        )
    name = TITLES[side.constraint]
    if side.recovered:
        risk = "" if side.local_lipschitz < 1 else ", although the branch is no contraction here"
        return (
            f"{name}: the picture came back this time{risk}; {error}. Nothing promises it: try other pictures "
            "and seeds."
        )
    if side.converged:
        return (
            f"{name}: FAILED. The iteration converged, but to another picture ({error}), which the network maps to the "
            "same latent, to within the solver’s tolerance: the latent does not determine which of the two it was."
        )
    return (
        f"{name}: FAILED. After {side.evaluations} evaluations the iteration has not converged (relative residual "
        f"{format_number(side.residual, 2)}) and what came back is not the picture ({error})."
    )


def honesty(outcome: Outcome) -> str:
    """Return what the networks are, and what they are not."""
    options = outcome.options
    trained = f"{outcome.chosen.steps} steps"
    if outcome.other.steps != outcome.chosen.steps:
        trained = (
            f"{outcome.chosen.steps} steps ({NAMES[outcome.chosen.constraint]}) and {outcome.other.steps} steps "
            f"({NAMES[outcome.other.constraint]}; training ended where its gradient was not finite any more)"
        )
    start = (
        "random weights, not trained" if options.steps == 0 else f"random weights, then trained for {trained}"
    )
    return (
        f"Both networks, {' and '.join(options.variants)}: one attention block on the picture’s 2×2 blocks, {start}. "
        "Training is that of the paper’s reconstruction experiment, towards a fixed random tensor, but on this "
        f"one picture of {options.size}×{options.size} pixels and much shorter; these are not the paper’s networks. "
        f"Seed {options.seed} decides weights, noise and target, the same for both. The authors’ code normalizes by "
        "row with a factor of 2/3, whatever is chosen."
    )


def table(outcome: Outcome) -> list[tuple[str, str, str]]:
    """Return the numbers of both networks, by name."""
    sides = (outcome.chosen, outcome.other)

    def row(name: str, *values: str) -> tuple[str, str, str]:
        return (name, values[0], values[1])

    return [
        row("mean squared error, 0–255", *(format_number(side.mse) for side in sides)),
        row("recovered (error below 10)", *("yes" if side.recovered else "no" for side in sides)),
        row("inverse converged", *("yes" if side.converged else "no" for side in sides)),
        row("evaluations", *(str(side.evaluations) for side in sides)),
        row("relative residual", *(format_number(side.residual, 2) for side in sides)),
        row("distance to the true inverse, at most", *(_promised(side.error_bound) for side in sides)),
        row("certified Lipschitz constant", *(_promised(side.certificate) for side in sides)),
        row("measured Lipschitz constant here", *(format_number(side.local_lipschitz) for side in sides)),
        row("training steps", *(str(side.steps) for side in sides)),
    ]


def _promised(value: float) -> str:
    return format_number(value, 3) if math.isfinite(value) else "no promise"


def attention_words(shares: Float[Tensor, "rows columns"], block: tuple[int, int]) -> str:
    """Say what a map of weights shows; 1 is an even share."""
    row, column = divmod(int(shares.flatten().argmax()), shares.shape[1])
    highest, lowest = float(shares.max()), float(shares.min())
    spread = (highest - lowest) / max(abs(highest), abs(lowest))
    # As many digits as distinguish the largest from the smallest.
    digits = 3 if spread > ALMOST_EVEN else min(8, 2 - math.floor(math.log10(max(spread, 1e-6))))
    text = (
        f"The block at row {2 * block[0]}, column {2 * block[1]} takes {format_number(highest, digits)} times an even "
        f"share from the block it takes most from, at row {2 * row}, column {2 * column}, and "
        f"{format_number(lowest, digits)} times from the one it takes least from."
    )
    if spread <= ALMOST_EVEN:
        text += " That is almost the same from everywhere."
    if lowest < 0:
        negative = 100 * float((shares < 0).double().mean())
        text += f" {negative:.0f} % of its weights are negative."
    return text
