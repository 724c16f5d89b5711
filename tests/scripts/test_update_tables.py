"""Tables of the README and the documentation match the files under results/."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="needs the extra experiments")

ROOT = Path(__file__).parents[2]
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "update_tables.py"), run_name="script")
PAGES = [page for page in SCRIPT["pages"]() if page.is_file()]
PLACES = [(page, found) for page in PAGES for found in SCRIPT["PLACE"].finditer(page.read_text("utf-8"))]

needs_results = pytest.mark.skipif(not SCRIPT["RESULTS"].is_dir(), reason="results/ is not part of this copy")


@needs_results
def test_tables_are_current() -> None:
    # In a separate process: the help of commands depends on earlier calls.
    command = [sys.executable, str(ROOT / "scripts" / "update_tables.py"), "--check"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, (
        f"run python scripts/update_tables.py: {finished.stdout}{finished.stderr}"
    )


@needs_results
def test_every_placeholder_has_a_table() -> None:
    assert len(PLACES) > 20
    for page, found in PLACES:
        assert ("`--output" if "options" in found[1] else "| --- |") in found[0], (page, found[1])
    begun = sum(page.read_text("utf-8").count("\n<!-- end -->") for page in PAGES)
    assert begun == len(PLACES)


def test_empty_placeholder_keeps_the_following_text() -> None:
    text = "<!-- code: commands -->\n<!-- end -->\n\nkept\n\n<!-- code: commands -->\n<!-- end -->\n"
    parts = SCRIPT["update"](text).split("\n\nkept\n\n")
    assert len(parts) == 2
    assert parts[0] + "\n" == parts[1]
    assert "| --- |" in parts[0]


def test_missing_folder_error_names_the_command(tmp_path: Path) -> None:
    from invertible_attention.experiments.report.kinds import kinds

    commands = {kind.name: kind.command for kind in kinds().values()}
    for _, found in PLACES:
        if found[2] != "code":
            text = SCRIPT["render"](found[3], found[4].split(), tmp_path / "nothing")
            assert commands[found[3].partition(".")[0]] in text
            assert "|" not in text


@needs_results
@pytest.mark.parametrize(
    ("table", "words"), [("novelty.rows", "no results of kind"), ("logdet.novelty", "no table")]
)
def test_unknown_tables_are_refused(table: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SCRIPT["render"](table)


@needs_results
def test_folders_are_selected_by_name(tmp_path: Path) -> None:
    content = json.loads((ROOT / "results" / "logdet" / "results.json").read_text(encoding="utf-8"))
    for name, calls in (("one", 11111), ("two-times", 22222)):
        content["rows"][0]["calls"] = calls
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(content))

    def shown(*patterns: str) -> list[bool]:
        text = SCRIPT["render"]("logdet.estimators", patterns, tmp_path)
        return ["11111" in text, "22222" in text]

    assert shown() == [True, True]
    assert shown("one") == [True, False]
    assert shown("!*-times") == [True, False]
