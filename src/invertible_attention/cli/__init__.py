"""The command line: ``invertible-attention <command>``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

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
    except ImportError as error:
        missing = error if isinstance(error, ModuleNotFoundError) else error.__cause__
        package = (getattr(missing, "name", None) or "").partition(".")[0]
        if package in {"", "invertible_attention"}:
            raise
        return _complain(f"this needs the package {package!r}: {install_line(_extra(arguments))}")
    except KeyboardInterrupt as error:
        return _complain(str(error) or "interrupted", status=130)


def _run(arguments: list[str]) -> int:
    from cyclopts import CycloptsError

    from ..experiments.errors import ExperimentError, UsageError
    from ..experiments.packages import require
    from .application import build
    from .commands import requested

    command = requested(arguments)
    app = build([command])
    try:
        if command is not None and not {"--help", "-h"} & set(arguments):
            require(command.extra)
        app(arguments, exit_on_error=False, print_error=False)
    except (CycloptsError, UsageError) as error:
        part = " ".join(["invertible-attention", *app.parse_commands(arguments)[0]])
        return _complain(f"{error} (see {part} --help)", status=2, cause=error)
    except ExperimentError as error:
        return _complain(str(error), cause=error)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _complain(f"{where}{error.strerror or error}", cause=error)
    # Without a command the help has been shown, and there is nothing to add.
    return 0 if arguments else 2


def _extra(arguments: list[str]) -> str:
    from .commands import requested

    command = requested(arguments)
    return "experiments" if command is None else command.extra


def _complain(message: str, *, status: int = 1, cause: Exception | None = None) -> int:
    if cause is not None and os.environ.get("INVERTIBLE_ATTENTION_TRACEBACK"):
        raise cause
    line = " ".join(message.split())
    print(f"invertible-attention: error: {line}", file=sys.stderr)
    return status
