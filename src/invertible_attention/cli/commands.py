"""Which subcommands exist, and where each is implemented.

A new command is one module and one line here. Its module is imported only when the command is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

__all__ = ["COMMANDS", "Command", "known", "requested"]

EXPERIMENTS = "invertible_attention.experiments"


@dataclass(frozen=True)
class Command:
    """A subcommand: its name, one line of help, and where it is.

    ``target`` is ``module:attribute`` of a function, an :class:`~.arguments.Implementation` (a function and
    how its arguments are read) or a ``typer.Typer`` with commands of its own.
    """

    name: str
    help: str
    target: str
    extra: str = "experiments"

    def load(self) -> Any:
        """Import the implementation."""
        module, _, attribute = self.target.partition(":")
        return getattr(import_module(module), attribute)


COMMANDS = (
    Command(
        "reconstruct",
        "Train invertible attention on images, invert it, and measure what comes back (Tables 2 and 5).",
        f"{EXPERIMENTS}.reconstruct.command:COMMAND",
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
        f"{EXPERIMENTS}.audit.command:COMMAND",
    ),
    Command(
        "benchmark",
        "Time attention and measure its memory against the N×N form and PyTorch's own, in one run.",
        f"{EXPERIMENTS}.benchmark.command:COMMAND",
    ),
    Command(
        "report",
        "Put result folders on one page, beside the paper's tables and figures.",
        f"{EXPERIMENTS}.report.command:COMMAND",
    ),
    Command(
        "demo",
        "Try invertible attention on your own pictures, on a page served on this machine only.",
        f"{EXPERIMENTS}.demo.command:COMMAND",
        extra="demo",
    ),
)


def requested(arguments: Sequence[str]) -> str | None:
    """Return the subcommand's name among ``arguments``, the first that is not an option."""
    return next((argument for argument in arguments if not argument.startswith("-")), None)


def known(arguments: Sequence[str]) -> list[str]:
    """Return the requested subcommand in a list, which is empty if there is no such command."""
    return [command.name for command in COMMANDS if command.name == requested(arguments)]
