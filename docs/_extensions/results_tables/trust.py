"""Tables of the guarantees: runs that were killed, what the tests reach, and what they notice."""

from __future__ import annotations

from pathlib import Path

from results_tables.markdown import Table, fixed, grid, provenance, read

__all__ = ["TABLES"]


def kills(path: Path) -> str:
    """Write where the kills of one experiment fell, and what was not as it should be afterwards."""
    content = read(path)
    stages = content["stages"]
    head = ["killed", "kills", *stages, "while writing a file", "runs", "mismatches"]
    # A file may lie there half written over several kills; it was begun before one.
    begun = {name for kill in content["kills"] for name in kill["begun"]}
    counts = [content["moments"], *stages.values(), len(begun), content["runs"], len(content["mismatches"])]
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
    return f"{table}\n\n{provenance(content['run'], more=content['note'])}"


def mutation(path: Path) -> str:
    """Write how many small changes of the code the tests noticed, by module, and what the others come to."""
    content = read(path)
    rows = []
    for module, found in content["modules"].items():
        judgements = [survivor["judgement"].partition(":")[0] for survivor in found["survivors"]]
        counts = [found["mutants"], found["tried"], found["killed"]]
        rows.append(
            [f"`{'/'.join(Path(module).parts[-2:])}`", *map(str, counts), *map(str, _judged(judgements))]
        )
    total = ["**all**", *(str(sum(int(row[i]) for row in rows)) for i in range(1, 6))]
    head = ["module", "possible changes", "tried", "noticed", "same behaviour", "do not matter"]
    more = f"drawn at random with seed {content['seed']}"
    return f"{grid(head, [*rows, total])}\n\n{provenance(content['run'], more=more)}"


def _judged(judgements: list[str]) -> tuple[int, int]:
    equivalent = judgements.count("equivalent")
    return equivalent, len(judgements) - equivalent


COMMAND = "python tests/trust/killing.py"
TABLES = (
    Table("kills", "trust", ("kills-*.json",), COMMAND, kills),
    Table("mutation", "trust", ("mutation.json",), "make mutation", mutation),
    Table("coverage", "trust", ("coverage.json",), "make coverage", coverage),
)
