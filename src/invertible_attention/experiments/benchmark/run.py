"""The benchmark from start to files."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from ..metadata import run_metadata
from ..study import Cell, Report, Study
from .configuration import Configuration
from .figure import draw
from .implementations import RESPONSES
from .measure import measure
from .summary import claims, growth
from .tables import BENCHMARK

__all__ = ["run"]

OWNED = ("benchmark.json", "attention.png", "report.html")


def run(
    configuration: Configuration,
    *,
    output: Path,
    device: str = "cpu",
    authors_code: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
) -> dict[str, Any] | None:
    """Measure, print the tables and the claims, and write ``benchmark.json``, ``attention.png`` and the page.

    Args:
        configuration: how much is measured.
        output: folder for the files.
        device: where to measure time; memory is measured on a CPU.
        authors_code: checkout of the authors' released code to time as well.
        resume: keep what an interrupted benchmark has measured.
        overwrite: delete an earlier benchmark first.
        console: where progress and tables are shown; the terminal by default.

    Returns:
        What was written to ``benchmark.json``.
    """
    study = Study(
        output,
        {"device": device, "settings": configuration.to_json()},
        owned=OWNED,
        resume=resume,
        overwrite=overwrite,
        console=console,
        unit="responses",
    )
    with study:
        pass
    return study.run(
        [Cell(response, {"response": response}, response, response) for response in RESPONSES],
        partial(measure, configuration=configuration, device=device, authors_code=authors_code),
        Report(
            collect=lambda found: _collect(found, device, configuration.claimed_tokens),
            draw=lambda results: [draw(results)],
            shown=["times", "growth", "claims"],
            line=lambda found: f"{len(found['times']) + len(found['memory'])} measurements",
            results="benchmark.json",
            figures="",
        ),
    )


def _collect(found: dict[str, dict[str, Any]], device: str, tokens: int) -> dict[str, Any]:
    results: dict[str, Any] = {"schema": BENCHMARK.schema}
    for kind in ("times", "memory", "released"):
        results[kind] = [
            record for response in RESPONSES if response in found for record in found[response][kind]
        ]
    results["growth"] = growth(results)
    results["claims"] = claims(results, tokens)
    return results | {"run": run_metadata(device)}
