"""Tables of the guarantees: runs that were killed, and what the tests reach."""

from __future__ import annotations

from pathlib import Path

from results_tables.markdown import Table, fixed, grid, provenance, read

__all__ = ["TABLES"]


def kills(path: Path) -> str:
    """Write where the kills of one experiment fell, and what was not as it should be afterwards."""
    content = read(path)
    stages = content["stages"]
    head = ["killed", "kills", *stages, "while writing a file", "runs", "mismatches"]
    begun = sum(bool(kill["begun"]) for kill in content["kills"])
    counts = [content["moments"], *stages.values(), begun, content["runs"], len(content["mismatches"])]
    table = grid(head, [[content["experiment"], *map(str, counts)]])
    more = f"a run left alone took {content['seconds_whole']:.0f} s, seed {content['seed']}"
    return f"{table}\n\n{provenance(content['run'], more=more)}"


def coverage(path: Path) -> str:
    """Write the part of the lines and branches that the tests reach, by package."""
    content = read(path)
    rows = [
        [
            name,
            f"{part['lines']:,}",
            f"{fixed(part['lines_percent'], 1)} %",
            f"{part['branches']:,}",
            f"{fixed(part['branches_percent'], 1)} %",
        ]
        for name, part in {"**all**": content["total"], **content["packages"]}.items()
    ]
    table = grid(["package", "lines", "reached", "branches", "reached"], rows)
    return f"{table}\n\n{provenance(content['run'])}"


COMMAND = "python tests/trust/killing.py"
TABLES = (
    Table("kills", "trust", ("kills-*.json",), COMMAND, kills),
    Table("coverage", "trust", ("coverage.json",), "make coverage", coverage),
)
