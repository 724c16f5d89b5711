"""The command line: ``invertible-attention <command>``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any, cast

from .._install import install_line

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status.

    Errors a user can fix are printed on one line of standard error; with
    ``INVERTIBLE_ATTENTION_TRACEBACK=1`` in the environment they come with their traceback.

    Args:
        arguments: what follows the program's name; ``None`` takes ``sys.argv``.

    Returns:
        0 on success, 1 for a failure while running, 2 for bad arguments, 130 when interrupted.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _run(arguments)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in {"", "invertible_attention"}:
            raise
        return _complain(f"this needs the package {package!r}: {install_line(_extra(arguments))}")
    except KeyboardInterrupt:
        return _complain("interrupted", status=130)


def _run(arguments: list[str]) -> int:
    import typer

    from ..experiments.errors import ExperimentError
    from ..experiments.packages import require
    from .application import build
    from .commands import known

    usage_error = cast(type[Exception], typer.BadParameter.__base__)
    try:
        if known(arguments) and not {"--help", "-h"} & set(arguments):
            require(_extra(arguments))
        status = build(arguments)(args=arguments, prog_name="invertible-attention", standalone_mode=False)
    except usage_error as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else " ".join(["invertible-attention", *known(arguments)])
        message = cast(Any, error).format_message().replace("Value error, ", "")
        # Without a command the help has been shown, and there is nothing to add.
        return _complain(f"{message} (see {command} --help)", status=2) if message else 2
    except typer.Abort:
        return _complain("interrupted", status=130)
    except ExperimentError as error:
        return _complain(str(error), cause=error)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _complain(f"{where}{error.strerror or error}", cause=error)
    return int(status or 0)


def _extra(arguments: list[str]) -> str:
    from .commands import COMMANDS, requested

    name = requested(arguments)
    return next((command.extra for command in COMMANDS if command.name == name), "experiments")


def _complain(message: str, *, status: int = 1, cause: Exception | None = None) -> int:
    if cause is not None and os.environ.get("INVERTIBLE_ATTENTION_TRACEBACK"):
        raise cause
    line = " ".join(message.split())
    print(f"invertible-attention: error: {line}", file=sys.stderr)
    return status
