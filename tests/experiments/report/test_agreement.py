"""Past disagreements between pages, checked against the files under ``results/``."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from invertible_attention.cli import main
from invertible_attention.experiments.density.comparison import is_likelihood
from invertible_attention.experiments.report.kinds import Result, kind_of, kinds
from invertible_attention.experiments.report.results import find_results
from invertible_attention.experiments.report.summary import TABLES, build_sections
from invertible_attention.experiments.report.table import Row, Table

RESULTS = Path(__file__).parents[3] / "results"
pytestmark = pytest.mark.skipif(not RESULTS.is_dir(), reason="needs the repository's results folder")


def results_of(kind: str) -> list[Result]:
    return [result for result in find_results([RESULTS])[0] if result.kind.name == kind]


def table_of(result: Result, name: str) -> Table:
    found = (table for section in build_sections([result]) for table in section.tables if table.name == name)
    return next(found)


def rows_of(table: Table) -> list[Row]:
    return [row for group in table.groups for row in group.rows]


def cells_of(table: Table, row: Row) -> dict[str, str]:
    return dict(zip(table.columns, row.cells, strict=True))


def test_every_file_is_read_and_every_table_shown(tmp_path: Path) -> None:
    found, unknown = find_results([RESULTS])
    assert unknown == []
    assert {result.path for result in found} == set(RESULTS.rglob("*.json"))
    titles = [section.title for section in build_sections(found)]
    for start in TABLES.values():
        assert any(title.startswith(start) for title in titles), start
    assert main(["report", str(RESULTS / "density"), "--output", str(tmp_path / "page.html")]) == 0
    assert "Table 3: density of CIFAR-10" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_values_that_are_not_likelihoods_are_bracketed_and_never_compared() -> None:
    bracketed = 0
    for result in results_of("density-study"):
        sections = build_sections([result])
        wrong = [row for row in result.content["rows"] if not is_likelihood(row)]
        named = {row["variant"] for row in wrong}
        for table in (table for section in sections for table in section.tables):
            for row in rows_of(table):
                if row.cells[0] in named and table.name in ("published", "comparison"):
                    cells = cells_of(table, row)
                    assert cells["bits/dim"].startswith("[")
                    assert cells.get("difference", "–") == cells.get("difference at equal time", "–") == "–"
                    bracketed += 1
        if wrong:
            assert any(note.startswith("In brackets:") for section in sections for note in section.notes)
    assert bracketed > 4


def test_only_rows_with_a_certificate_are_highlighted_as_certified() -> None:
    for result in results_of("density-study"):
        # Densities of other libraries beside whatever a study has.
        others = [{"variant": name, "model": name} for name in ("made/depth=2", "maf/depth=2")]
        content = result.content | {
            part: [*result.content[part], *(result.content[part][0] | other for other in others)]
            for part in ("rows", "cells")
        }
        changed = Result(result.kind, result.name, result.path, content)
        for name in ("published", "comparison"):
            for row in rows_of(table_of(changed, name)):
                assert (row.kind == "certified") == ("/certified" in row.cells[0]), row
        for row in rows_of(table_of(changed, "comparison"))[-2:]:
            cells = cells_of(table_of(changed, "comparison"), row)
            assert (cells["determinants"], cells["largest radius"]) == ("the model’s", "–")


def test_times_are_the_statistic_named_in_the_caption() -> None:
    (cost,) = results_of("camouflage-measure")
    cost.content["models"][0]["step_seconds"] = [9.0, 1.0, 2.0, 6.0]
    table = table_of(cost, "costs")
    assert "median, without the first" in table.caption
    assert cells_of(table, rows_of(table)[0])["step, s"] == f"{statistics.median([1.0, 2.0, 6.0]):g}"
    (benchmark,) = results_of("benchmark")
    table = table_of(benchmark, "times")
    assert "the fastest round and the median one" in table.caption
    first = next(record for record in benchmark.content["times"] if record["contender"] == "auto")
    cells = cells_of(table, rows_of(table)[0])
    assert float(cells["this library, ms"]) == pytest.approx(1e3 * first["seconds"], rel=0.01)
    assert float(cells["median, ms"]) == pytest.approx(1e3 * first["median"], rel=0.01)
    assert not any("median" in note for section in build_sections([benchmark]) for note in section.notes)


@pytest.mark.parametrize(("ratio", "shown"), [(1.0000003, "1.000001"), (0.9999997, "0.999999")])
def test_violated_bound_is_never_rounded_to_kept(ratio: float, shown: str) -> None:
    (attack,) = results_of("attack")
    attack.content["tightest_by"]["response"]["gaussian"][0] = ratio
    attack.content["tightest"][0]["ratio"] = ratio
    (row,) = (row for row in rows_of(table_of(attack, "ranges")) if row.cells[0] == "gaussian")
    assert row.cells[1] == shown
    assert rows_of(table_of(attack, "cases"))[0].cells[1] == f"{ratio:.9f}"
    audit = results_of("audit")[0]
    attacked: dict[str, Any] = next(block for block in audit.content["blocks"] if block["attack"])
    attacked["attack"]["input"]["ratio"] = ratio
    cells = [row.cells for row in rows_of(table_of(audit, "ascents"))]
    assert any(shown in line for line in cells)
    if ratio > 1:
        assert any(shown in row.cells for row in rows_of(table_of(audit, "networks")))


@pytest.mark.parametrize(
    "path", sorted(RESULTS.rglob("*.json")), ids=lambda path: str(path.relative_to(RESULTS))
)
def test_every_file_has_a_known_schema(path: Path) -> None:
    assert json.loads(path.read_text(encoding="utf-8"))["schema"] in kinds()


def test_every_writer_of_results_writes_its_schema() -> None:
    root = RESULTS.parent
    sources = "\n".join(
        path.read_text(encoding="utf-8")
        for folder in ("src", "benchmarks", "scripts", "tests/trust")
        for path in (root / folder).rglob("*.py")
        if path.name != "tables.py" and "measurements" not in path.parts
    )
    constants = {"density": "RUN.schema", "density-study": "STUDY.schema", "benchmark": "BENCHMARK.schema"}
    constants |= {"audit": "AUDIT.schema", "camouflage-measure": "COST.schema"}
    for kind in kinds().values():
        assert f'"{kind.schema}"' in sources or f'"schema": {constants[kind.name]}' in sources, kind.name
    assert kind_of({"schema": "invertible-attention/density/2"}) is None
