"""How commands read their arguments: lists in one option, and the options all long commands share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

__all__ = [
    "DataDir",
    "Device",
    "Implementation",
    "ListCommand",
    "Output",
    "Overwrite",
    "Quick",
    "Resume",
    "Seed",
    "split_lists",
]

Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for results; made if absent.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps …")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of everything random.")]
Quick = Annotated[bool, typer.Option("--quick", help="A small but real run, minutes on a laptop.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run of this folder.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Delete this folder's results and start anew.")]
DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Local data: parquet files, or a folder of images, instead of the hub."),
]


def split_lists(arguments: list[str], lists: dict[str, type]) -> list[str]:
    """Rewrite ``--option a b,c`` as ``--option a --option b --option c`` for the options in ``lists``.

    Example:
        >>> split_lists(["--kinds", "a", "b,c", "--seed", "1"], {"--kinds": str})
        ['--kinds', 'a', '--kinds', 'b', '--kinds', 'c', '--seed', '1']
    """
    rewritten: list[str] = []
    option: str | None = None
    for argument in arguments:
        if argument.startswith("--"):
            name, _, value = argument.partition("=")
            option = name if name in lists else None
            if option is None:
                rewritten.append(argument)
            elif value:
                rewritten += [part for item in value.split(",") if item for part in (option, item)]
        elif option is not None and not argument.startswith("-"):
            rewritten += [part for item in argument.split(",") if item for part in (option, item)]
        else:
            option = None
            rewritten.append(argument)
    return rewritten


@dataclass(frozen=True)
class Implementation:
    """A command's function, its full help and the class that reads its arguments."""

    function: Callable[..., None]
    help: str | None = None
    kind: type[TyperCommand] = TyperCommand


class ListCommand(TyperCommand):
    """A command without positional arguments whose repeatable options also take several values at once."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse ``args`` after splitting the lists."""
        lists = {name: str for parameter in self.params if parameter.multiple for name in parameter.opts}
        return super().parse_args(ctx, split_lists(args, lists))
