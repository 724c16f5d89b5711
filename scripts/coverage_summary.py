"""Summarize what the tests reach, in total and by package, and fail where it is too little.

python scripts/coverage_summary.py [--at-least 95] [--output results/trust/coverage.json]
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
from collections import defaultdict
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from coverage import Coverage

from invertible_attention.experiments.files import write_json
from invertible_attention.experiments.metadata import run_metadata

PACKAGE = "invertible_attention"
COUNTS = ("num_statements", "covered_lines", "num_branches", "covered_branches")


def package_of(path: str) -> str:
    """Return the subpackage a file is in, one level deeper for the experiments.

    Example:
        >>> package_of("src/invertible_attention/solvers/base.py")
        'solvers'
        >>> package_of("src/invertible_attention/experiments/density/run.py")
        'experiments.density'
        >>> package_of("src/invertible_attention/residual.py")
        'invertible_attention'
    """
    parts = Path(path).parts
    folders = parts[parts.index(PACKAGE) + 1 : -1]
    return ".".join(folders[: 2 if folders[:1] == ("experiments",) else 1]) or PACKAGE


def summarize(report: dict[str, Any]) -> dict[str, Any]:
    """Return lines and branches, in total and by package, of what ``coverage json`` writes."""
    packages: dict[str, list[dict[str, int]]] = defaultdict(list)
    for path, file in report["files"].items():
        packages[package_of(path)].append(file["summary"])
    everything = [summary for summaries in packages.values() for summary in summaries]
    return {
        "total": percentages(everything),
        "packages": {name: percentages(packages[name]) for name in sorted(packages)},
    }


def percentages(summaries: list[dict[str, int]]) -> dict[str, Any]:
    """Return how many lines and branches there are, and how many percent of them are reached."""
    lines, covered, branches, taken = (sum(summary[name] for summary in summaries) for name in COUNTS)
    return {
        "lines": lines,
        "lines_percent": round(100 * covered / lines, 2) if lines else 100.0,
        "branches": branches,
        "branches_percent": round(100 * taken / branches, 2) if branches else 100.0,
    }


def measured() -> dict[str, Any]:
    """Return what ``coverage json`` says of the data in this folder."""
    coverage = Coverage()
    coverage.load()
    with tempfile.TemporaryDirectory() as scratch, redirect_stdout(io.StringIO()):
        path = Path(scratch) / "coverage.json"
        coverage.json_report(outfile=str(path))
        return json.loads(path.read_text(encoding="utf-8"))


def main() -> int:
    """Print the total, write the summary, and return 1 where lines or branches are below what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--at-least", type=float, default=0.0, help="percent of lines, and of branches")
    parser.add_argument("--output", type=Path, help="file to write the summary to")
    parser.add_argument("--note", help="what of the tests was run, if not all", default="all tests")
    arguments = parser.parse_args()
    summary = summarize(measured()) | {"note": arguments.note}
    total = summary["total"]
    print(f"{total['lines_percent']} % of {total['lines']} lines", end=", ")
    print(f"{total['branches_percent']} % of {total['branches']} branches")
    if arguments.output:
        write_json(
            arguments.output,
            {"schema": "invertible-attention/coverage/1"} | summary | {"run": run_metadata()},
        )
    if min(total["lines_percent"], total["branches_percent"]) < arguments.at_least:
        print(f"below {arguments.at_least} %", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
