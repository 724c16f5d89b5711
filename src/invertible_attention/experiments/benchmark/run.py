"""The benchmark from start to files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..files import write_json
from ..metadata import run_metadata
from ..report.figures import save_figures
from .figure import draw
from .measure import measure
from .settings import FULL, PAPER_TOKENS, QUICK
from .summary import claims, growth, table

__all__ = ["run"]


def run(
    output: Path,
    *,
    quick: bool = False,
    device: str = "cpu",
    authors_code: Path | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measure, print the table and the claims, and write ``benchmark.json`` and ``attention.png``.

    Args:
        output: folder for the files.
        quick: whether to measure small sizes only, in about a minute.
        device: where to measure time; memory is measured on a CPU.
        authors_code: checkout of the authors' released code to time beside.
        say: called with every line.

    Returns:
        What was written to ``benchmark.json``.
    """
    settings = QUICK if quick else FULL
    metadata = run_metadata(device)
    results: dict[str, Any] = dict(measure(settings, device=device, authors_code=authors_code, say=say))
    results["growth"] = growth(results)
    results["claims"] = claims(results, min(PAPER_TOKENS, max(settings.tokens)))
    results["metadata"] = metadata
    for line in table(results):
        say(line)
    for record in results["growth"]:
        say(f"{record['response']}, {record['contender']}: {record['of']} grow like N^{record['exponent']}")
    for record in results["claims"]:
        verdict = "met" if record["met"] else "NOT met"
        say(f"{record['claim']}: {record['measured']} ({record['limit']}: {verdict})")
    write_json(output / "benchmark.json", results)
    save_figures(output, [draw(results)])
    return results
