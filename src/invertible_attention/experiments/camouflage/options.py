"""Options that several parts of the camouflage command share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, Token

from ...cli.options import Options, flag, many, number, read
from ..errors import ExperimentError
from .configuration import GENERATED, QUICK, Configuration
from .models import EARLIER, MODELS, row_today

__all__ = [
    "DataFolders",
    "Decoders",
    "Given",
    "LeaveOutBad",
    "Model",
    "Models",
    "Results",
    "TestData",
    "check_file",
]

OTHERWISE = {"without --data": GENERATED, "with --quick": QUICK}
LeaveOutBad = Annotated[bool, flag("Skip files that cannot be used.")]
TestData = Annotated[
    tuple[Path, ...], many("Folders with test images only.", "--test-data", show_default=False)
]


def read_models(kind: Any, tokens: Sequence[Token]) -> Any:
    """Read rows of the table, also by the names of earlier versions."""
    items = [(token, item) for token in tokens for item in token.value.split(",") if item]
    if unknown := next((item for _, item in items if item not in MODELS | EARLIER), None):
        raise ValueError(f"{unknown} is not one of them. Choose from: {', '.join(MODELS)}.")
    return read(kind, [token.evolve(value=row_today(item)) for token, item in items])


ROWS = (
    "of Table 4: none, or RESPONSE/CONSTRAINT such as concatenation/certified; "
    "constraints are ordinary, relaxed (the paper's) and certified."
)
Model = Annotated[str, Parameter(help=f"Row {ROWS}", converter=read_models)]
Models = Annotated[
    tuple[str, ...],
    many(f"Rows {ROWS}", converter=read_models, show_default="the paper's nine and ours"),
]
Results = Annotated[Path | None, Parameter(("--output", "-o"), help="JSON file to write.")]
Decoders = Annotated[int, number("Threads that decode images before training; 0 for all cores.", 0)]


class Given(Options, of=Configuration, otherwise=OTHERWISE):
    """The settings of a detector as options."""


@Parameter(name="*")
@dataclass(frozen=True)
class DataFolders:
    """Where the images are.

    Args:
        roots: folders whose names distinguish training and test; all empty for generated images.
        train: folders of which everything is for training.
        test: folders of which everything is for testing.
        leave_out_bad: continue without files that cannot be used.
    """

    roots: Annotated[
        tuple[Path, ...],
        many(
            "Dataset folders as distributed; the names in them distinguish training and test.",
            "--data",
            show_default="generated images",
        ),
    ] = ()
    train: Annotated[
        tuple[Path, ...], many("Folders with training images only.", "--train-data", show_default=False)
    ] = ()
    test: TestData = ()
    leave_out_bad: LeaveOutBad = False

    @property
    def given(self) -> bool:
        """Whether there are any."""
        return bool(self.roots or self.train or self.test)


def check_file(path: Path | None) -> None:
    """Raise for a file that could not be written when the work is done.

    Raises:
        ExperimentError: saying what is in the way.
    """
    if path is None:
        return
    if path.is_dir():
        raise ExperimentError(f"cannot write {path}: it is a folder, give a file in it")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir():
        raise ExperimentError(f"cannot write {path}: {above} is not a folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ExperimentError(f"cannot write {path}: nothing may be written in {above}")
