"""The directive writes tables from results, whatever is there of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="docs/ is not part of this copy")
sys.path.insert(0, str(DOCS / "_extensions"))


@pytest.fixture(scope="module")
def directive() -> Any:
    pytest.importorskip("sphinx", reason="needs the extra docs")
    import results_tables

    return results_tables


def asked() -> list[tuple[str, list[str], Path]]:
    """Every table that a page asks for, with the folders it names."""
    found = []
    for page in sorted(DOCS.glob("*.md")):
        for line in page.read_text(encoding="utf-8").splitlines():
            if line.startswith("```{results}"):
                table, *patterns = line.removeprefix("```{results}").split()
                found.append((table, patterns, page))
    return found


def cells(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_table_that_a_page_asks_for_is_there(directive: Any) -> None:
    assert len(asked()) > 15
    for table, patterns, page in asked():
        text = directive.render(table, patterns)
        if directive.RESULTS.is_dir():
            assert cells(text), (page, table)


def test_an_absent_folder_names_the_command(directive: Any, tmp_path: Path) -> None:
    from invertible_attention.experiments.report.kinds import kinds

    commands = {kind.name: kind.command for kind in kinds().values()}
    for table, patterns, _ in asked():
        text = directive.render(table, patterns, tmp_path / "nothing")
        assert commands[table.partition(".")[0]] in text
        assert "|" not in text


@pytest.mark.parametrize(
    ("table", "words"), [("novelty.rows", "no results of kind"), ("logdet.novelty", "no table")]
)
def test_what_does_not_exist_is_named(directive: Any, table: str, words: str) -> None:
    if not directive.RESULTS.is_dir():
        pytest.skip("results/ is not part of this copy")
    with pytest.raises(ValueError, match=words):
        directive.render(table)


def test_folders_are_chosen_by_name(directive: Any, tmp_path: Path) -> None:
    source = ROOT / "results" / "logdet" / "results.json"
    if not source.is_file():
        pytest.skip("results/ is not part of this copy")
    content = json.loads(source.read_text(encoding="utf-8"))
    for name, calls in (("one", 11111), ("two-times", 22222)):
        content["rows"][0]["calls"] = calls
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(content))

    def shown(*patterns: str) -> list[bool]:
        text = directive.render("logdet.estimators", patterns, tmp_path)
        return ["11111" in text, "22222" in text]

    assert shown() == [True, True]
    assert shown("one") == [True, False]
    assert shown("!*-times") == [True, False]


def test_the_readme_shows_what_the_files_say() -> None:
    results = ROOT / "results" / "reconstruct" / "cifar10" / "results.json"
    if not results.is_file():
        pytest.skip("results/ is not part of this copy")
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import update_readme
    finally:
        sys.path.pop(0)
    assert update_readme.table(results) in (ROOT / "README.md").read_text(encoding="utf-8")
