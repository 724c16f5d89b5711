"""Every file under ``results/`` in every output format: the same numbers, and no field omitted."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from invertible_attention.experiments.errors import ExperimentError
from invertible_attention.experiments.files import read_json
from invertible_attention.experiments.report.kinds import Kind, Result, kind_of, kinds
from invertible_attention.experiments.report.render import section_markdown, to_html, to_markdown, to_terminal
from invertible_attention.experiments.report.section import Section
from invertible_attention.experiments.report.summary import build_sections
from invertible_attention.experiments.report.table import Table, sources_table

from .test_summary import Page

RESULTS = Path(__file__).parents[3] / "results"
FILES = sorted(RESULTS.rglob("*.json"))
pytestmark = pytest.mark.skipif(not FILES, reason="needs the repository's results folder")


def name_of(path: Path) -> str:
    return str(path.relative_to(RESULTS))


def result_in(path: Path) -> Result:
    content = read_json(path)
    kind = kind_of(content)
    assert kind is not None, f"{path} has a schema that no table is declared for"
    return Result(kind, path.parent.name, path, content)


@pytest.fixture(scope="module", params=FILES, ids=name_of)
def tables(request: pytest.FixtureRequest) -> list[Table]:
    found = [table for section in build_sections([result_in(request.param)]) for table in section.tables]
    assert any(table.sources for table in found), "no table shows what was measured"
    return found


def lines(table: Table) -> list[tuple[str, ...]]:
    """All lines of a table with their cells: the head, titles of groups, rows."""
    found = [table.columns]
    for group in table.groups:
        found += [(group.title,)] if group.title else []
        found += [row.cells for row in group.rows]
    return found


def test_markdown_has_every_cell(tables: list[Table]) -> None:
    for table in tables:
        head, _, *rows = to_markdown(table).splitlines()
        shown = [
            [cell.strip().removeprefix("**").removesuffix("**") for cell in line[1:-1].split(" | ")]
            for line in (head, *rows)
        ]
        assert {len(line) for line in shown} == {len(table.columns)}
        assert [tuple(line) if any(line[1:]) or len(line) == 1 else (line[0],) for line in shown] == [
            tuple(map(str.strip, line)) if any(line[1:]) or len(line) == 1 else (line[0],)
            for line in lines(table)
        ]


def test_html_has_every_cell_and_scoped_headers(tables: list[Table]) -> None:
    for table in tables:
        html = to_html(table)
        assert html.count("<th") == html.count("<th scope=") + html.count("<thead>")
        (shown,) = Page(html).tables
        assert [tuple(line) for line in shown] == lines(table)


@pytest.mark.parametrize("width", [80, 5000])
def test_the_terminal_has_every_cell(tables: list[Table], width: int) -> None:
    for table in tables:
        stream = io.StringIO()
        console = Console(file=stream, width=width)
        for grid in to_terminal(table, width):
            console.print(grid)
        text = stream.getvalue()
        assert "…" not in text
        wanted = Counter(word for line in lines(table) for cell in line[1:] for word in cell.split())
        if width == 80:
            # Only columns wider than the terminal are folded.
            wanted = Counter({word: count for word, count in wanted.items() if len(word) < 40})
        assert not wanted - Counter(text.split())


def everything(sections: list[Section]) -> str:
    """All text and tables of sections with their sources, without figures."""
    sources = {
        source.name: source for section in sections for table in section.tables for source in table.sources
    }
    return "\n".join([*map(section_markdown, sections), to_markdown(sources_table(sources.values()))])


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    """Yield every number and text with its path, items of lists under ``*``, and how to find it."""
    if isinstance(value, (dict, list)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            step = "*" if isinstance(key, int) else str(key)
            if isinstance(inner, (dict, list)):
                yield from leaves(inner, (*path, step))
            elif inner is not None:
                yield (*path, step), value, key


def declared(kind: Kind, path: tuple[str, ...]) -> bool:
    """Whether a kind declares a field, or one that contains it, as unshown."""
    for pattern in kind.unshown:
        parts = pattern.split(".")
        if len(parts) <= len(path) and all(a in ("*", b) for a, b in zip(parts, path, strict=False)):
            return True
    return path == ("schema",)


def changed(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return f"{value}~"
    return value + max(1, abs(value) // 3) if isinstance(value, int) else 1.37 * value + 0.7


def unnoticed(results: list[Result]) -> list[str]:
    """Return the fields whose change alters no output of any result of a kind."""
    seen: dict[tuple[str, ...], bool] = {}
    for result in results:
        before = everything(build_sections([result]))
        places: dict[tuple[str, ...], list[tuple[Any, Any]]] = {}
        for path, holder, key in leaves(result.content):
            places.setdefault(path, []).append((holder, key))
        for path, found in places.items():
            if not seen.get(path) and not declared(result.kind, path):
                seen[path] = shown_with_changes(result, found) != before
    return [".".join(path) for path, noticed in seen.items() if not noticed]


def shown_with_changes(result: Result, places: list[tuple[Any, Any]]) -> str | None:
    """Return what is shown with the values at some places changed; ``None`` where that is refused."""
    values = [holder[key] for holder, key in places]
    for (holder, key), value in zip(places, values, strict=True):
        holder[key] = changed(value)
    try:
        return everything(build_sections([result]))
    except (ExperimentError, LookupError, ValueError):
        return None
    finally:
        for (holder, key), value in zip(places, values, strict=True):
            holder[key] = value


@pytest.mark.parametrize("kind", kinds().values(), ids=lambda kind: kind.name)
def test_no_field_is_omitted(kind: Kind) -> None:
    assert unnoticed([result for path in FILES if (result := result_in(path)).kind == kind]) == []


def test_fields_declared_unshown_exist() -> None:
    paths: dict[str, set[tuple[str, ...]]] = {}
    for file in FILES:
        result = result_in(file)
        paths.setdefault(result.kind.name, set()).update(path for path, *_ in leaves(result.content))
    for kind in kinds().values():
        for pattern in kind.unshown if kind.name in paths else ():
            alone = Kind(kind.name, "", "", unshown={pattern: ""})
            assert any(declared(alone, path) for path in paths[kind.name] - {("schema",)}), (
                kind.name,
                pattern,
            )


def test_field_without_a_table_is_detected() -> None:
    path = next(path for path in FILES if path.parts[-2:] == ("logdet", "results.json"))
    result = result_in(path)
    result.content["novelty"] = 1.0
    result.content["rows"][0]["novelty"] = "new"
    assert unnoticed([result]) == ["rows.*.novelty", "novelty"]


def test_kind_without_a_table_is_detected() -> None:
    assert kind_of({"schema": "invertible-attention/novelty/1"}) is None
    assert kind_of(json.loads("{}")) is None
