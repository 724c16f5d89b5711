"""The benchmark from start to files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from ..files import write_json
from ..metadata import run_metadata
from ..report import save_figures
from ..report.summary import print_run
from .figure import draw
from .measure import measure
from .settings import FULL, PAPER_TOKENS, QUICK
from .summary import claims, growth
from .tables import BENCHMARK

__all__ = ["run"]


def run(
    output: Path,
    *,
    quick: bool = False,
    device: str = "cpu",
    authors_code: Path | None = None,
    say: Callable[[str], None] = print,
    console: Console | None = None,
) -> dict[str, Any]:
    """Measure, print the tables and the claims, and write ``benchmark.json`` and ``attention.png``.

    Args:
        output: folder for the files.
        quick: whether to measure small sizes only, in about a minute.
        device: where to measure time; memory is measured on a CPU.
        authors_code: checkout of the authors' released code to time beside.
        say: called with a line about every measurement.
        console: where the tables are shown; the terminal by default.

    Returns:
        What was written to ``benchmark.json``.
    """
    settings = QUICK if quick else FULL
    metadata = run_metadata(device)
    results: dict[str, Any] = {"schema": BENCHMARK.schema}
    results |= measure(settings, device=device, authors_code=authors_code, say=say)
    results["growth"] = growth(results)
    results["claims"] = claims(results, min(PAPER_TOKENS, max(settings.tokens)))
    results["run"] = metadata
    print_run(console or Console(), results, output, ["times", "growth", "claims"])
    write_json(output / "benchmark.json", results)
    save_figures(output, [draw(results)])
    return results
