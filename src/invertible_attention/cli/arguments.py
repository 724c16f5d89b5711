"""How commands read their arguments: lists in one option, and the options all long commands share."""

from __future__ import annotations

from collections.abc import Callable, Collection
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
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run of this folder.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Delete this folder's results and start again.")]
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir", help="Local data, parquet files or a folder of images, instead of the Hugging Face hub."
    ),
]


def split_lists(arguments: list[str], lists: Collection[str]) -> list[str]:
    """Rewrite ``--option a b,c`` as ``--option a --option b --option c`` for the options in ``lists``.

    Example:
        >>> split_lists(["--kinds", "a", "b,c", "--seed", "1"], {"--kinds"})
        ['--kinds', 'a', '--kinds', 'b', '--kinds', 'c', '--seed', '1']
    """
    rewritten: list[str] = []
    option: str | None = None
    empty = False
    for argument in arguments:
        name, _, value = argument.partition("=")
        if argument.startswith("-"):
            if empty and option is not None:
                # Left as it is, so that the parser says that a value is missing.
                rewritten.append(option)
            option = name if name in lists else None
            empty = option is not None
            if option is None:
                rewritten.append(argument)
                continue
            argument = value
        elif option is None:
            rewritten.append(argument)
            continue
        for item in filter(None, argument.split(",")):
            rewritten += [option, item]
            empty = False
    return rewritten if not empty or option is None else [*rewritten, option]


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
        lists = {name for parameter in self.params if parameter.multiple for name in parameter.opts}
        return super().parse_args(ctx, split_lists(args, lists))
