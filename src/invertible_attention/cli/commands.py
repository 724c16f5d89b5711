"""Which subcommands exist, and where each is implemented.

A new command is one module and one line here. Its module is imported only when the command is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["COMMANDS", "Command", "requested"]

EXPERIMENTS = "invertible_attention.experiments"


@dataclass(frozen=True)
class Command:
    """A subcommand: its name, one line of help, and where it is.

    ``target`` is ``module:attribute`` of a function or of an application with its own commands.
    """

    name: str
    help: str
    target: str
    extra: str = "experiments"


COMMANDS = (
    Command(
        "reconstruct",
        "Train invertible attention on images, invert it, and measure what comes back (Tables 2 and 5).",
        f"{EXPERIMENTS}.reconstruct.command:reconstruct",
    ),
    Command(
        "density",
        "Estimate densities with invertible networks and attention: train, evaluate, sample (Table 3).",
        f"{EXPERIMENTS}.density.command:APPLICATION",
    ),
    Command(
        "camouflage",
        "Detect camouflaged objects with ordinary and invertible attention: train, predict, evaluate (Table 4).",
        f"{EXPERIMENTS}.camouflage.command:APPLICATION",
        extra="camouflage",
    ),
    Command(
        "audit",
        "Measure whether a trained network is really invertible, or search for a layer above its bound.",
        f"{EXPERIMENTS}.audit.command:audit",
    ),
    Command(
        "benchmark",
        "Time attention and measure its memory against the N×N form and PyTorch's own, in one run.",
        f"{EXPERIMENTS}.benchmark.command:benchmark",
    ),
    Command(
        "report",
        "Put result folders on one page, next to the paper's tables and figures.",
        f"{EXPERIMENTS}.report.command:report",
    ),
    Command(
        "demo",
        "Try invertible attention on your own pictures, on a page served on this machine only.",
        f"{EXPERIMENTS}.demo.command:demo",
        extra="demo",
    ),
)


def requested(arguments: Sequence[str]) -> Command | None:
    """Return the subcommand among ``arguments``: the first that is not an option, if there is such a command."""
    name = next((argument for argument in arguments if not argument.startswith("-")), None)
    return next((command for command in COMMANDS if command.name == name), None)
