"""Options that several parts of the density command share."""

from __future__ import annotations

from typing import Annotated

from ...cli.options import Options, number
from .configuration import DIGITS, QUICK, TIMED, Configuration

__all__ = ["OTHERWISE", "Draws", "Given"]

OTHERWISE = {"digits": DIGITS, "with --minutes": TIMED, "with --quick": QUICK}
Draws = Annotated[int, number("Dequantizations per image in the evaluation.", 2)]


class Given(Options, of=Configuration, defaults={"dataset": "digits"}, otherwise=OTHERWISE):
    """The settings of a density as options."""
