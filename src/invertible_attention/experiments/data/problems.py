"""What is wrong with the files of a dataset, gathered first and reported once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import ExperimentError
from ..files import write_text
from .source import REPAIR, UnusableImageError

__all__ = ["REMEDY", "Problem", "report_problems"]

REMEDY = "repair or remove these files, or continue without them with --leave-out-bad"
"""What is advised where files may be skipped."""

NAMED = 10


@dataclass(frozen=True)
class Problem:
    """A file that cannot be used, and why.

    Args:
        path: the file or folder.
        reason: what is wrong with it; reads on after the path.
    """

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path} {self.reason}"

    @classmethod
    def of(cls, error: UnusableImageError) -> Problem:
        """Return an error of the reader as a problem, with what helps against it where that is particular."""
        advice = "" if error.remedy == REPAIR else f" ({error.remedy})"
        return cls(Path(error.name), error.reason + advice)


def report_problems(
    problems: Sequence[Problem], *, listing: Path | None = None, remedy: str | None = None
) -> None:
    """Raise one message naming the files, if there are any.

    Args:
        problems: what was found.
        listing: a file that gets the whole list where the message cannot hold it.
        remedy: what the reader may do; by default to repair or remove the files.

    Raises:
        ExperimentError: naming the first files, and where the others are listed.

    Example:
        >>> report_problems([])
        >>> report_problems([Problem(Path("a.jpg"), "has no mask")], remedy="draw it")
        Traceback (most recent call last):
        invertible_attention.experiments.errors.ExperimentError: 1 file cannot be used: a.jpg has no mask: draw it
    """
    if not problems:
        return
    named = "; ".join(str(problem) for problem in problems[:NAMED])
    if len(problems) > NAMED:
        named += f"; and {len(problems) - NAMED} more"
        if listing is not None:
            write_text(listing, "".join(f"{problem}\n" for problem in problems))
            named += f", all listed in {listing}"
    count, them = ("1 file", "it") if len(problems) == 1 else (f"{len(problems)} files", "them")
    raise ExperimentError(f"{count} cannot be used: {named}: {remedy or f'repair or remove {them}'}")
