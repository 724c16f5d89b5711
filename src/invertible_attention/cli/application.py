"""Assembling the command line from the list of commands."""

from __future__ import annotations

from collections.abc import Collection
from importlib.metadata import version

from cyclopts import App

from .commands import COMMANDS, Command

__all__ = ["build"]


def build(described: Collection[Command | None] = COMMANDS) -> App:
    """Return the command line.

    Args:
        described: commands whose help is their own, for which they are imported; others have their line in the list.
    """
    app = App(
        name="invertible-attention",
        help="Attention layers that are provably invertible: experiments, audits and measurements.",
        version=f"invertible-attention {version('invertible-attention')}",
        help_flags=("--help", "-h"),
        group_parameters="Options",
        result_action="return_value",
        suppress_keyboard_interrupt=False,
    )
    for position, command in enumerate(COMMANDS):
        help = None if command in described else command.help
        app.command(command.target, name=command.name, help=help, sort_key=position)
    return app
