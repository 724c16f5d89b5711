"""Studies: cells that are each computed once, over processes and machines, and reported on together."""

from __future__ import annotations

from .engine import RESULT, Cell, Report, Study, keep
from .folder import CELLS, CHECKPOINT, CONFIGURATION, OutputFolder
from .progress import RunProgress
from .workers import Workers

__all__ = [
    "CELLS",
    "CHECKPOINT",
    "CONFIGURATION",
    "RESULT",
    "Cell",
    "OutputFolder",
    "Report",
    "RunProgress",
    "Study",
    "Workers",
    "keep",
]
