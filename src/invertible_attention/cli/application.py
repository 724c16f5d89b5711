"""Assembling the Typer application from the list of commands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Annotated, Any

import typer

from .arguments import Implementation
from .commands import COMMANDS, Command, requested

__all__ = ["build"]


def build(arguments: Sequence[str]) -> Callable[..., Any]:
    """Return the command line as a callable.

    Only the requested command is imported; the others are represented by their line of help, so that
    ``--help`` costs nothing.
    """
    app = typer.Typer(
        name="invertible-attention",
        help="Attention layers that are provably invertible: experiments, audits and measurements.",
        no_args_is_help=True,
        add_completion=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        pretty_exceptions_enable=False,
    )
    app.callback()(_root)
    name = requested(arguments)
    for command in COMMANDS:
        _register(app, command, load=command.name == name)
    return typer.main.get_command(app)


def _register(app: typer.Typer, command: Command, *, load: bool) -> None:
    implementation = command.load() if load else _placeholder
    if isinstance(implementation, typer.Typer):
        app.add_typer(implementation, name=command.name, help=command.help)
        return
    if not isinstance(implementation, Implementation):
        implementation = Implementation(implementation)
    app.command(command.name, cls=implementation.kind, help=implementation.help, short_help=command.help)(
        implementation.function
    )


def _placeholder() -> None:
    """Stand for a command that was not asked for."""


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"invertible-attention {version('invertible-attention')}")
        raise typer.Exit


def _root(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    pass
