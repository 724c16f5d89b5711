"""Names on the pages exist, and the code on them runs."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="docs/ is not part of this copy")

sys.path.insert(0, str(DOCS / "_extensions"))

ROLE = re.compile(r"\{(?:py:)?(?:obj|class|func|meth|mod|attr|data)\}`(?:[^`<]*<)?~?([\w.]+)>?`")
PAGES = [page for page in sorted(DOCS.rglob("*.md")) if "_build" not in page.parts]


def found(page: Path) -> list[str]:
    return ROLE.findall(page.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def references():
    pytest.importorskip("sphinx", reason="needs the extra docs")
    import references

    return references


def test_paper_page_links_every_table_and_algorithm_to_an_object():
    text = (DOCS / "paper.md").read_text(encoding="utf-8")
    for item in (
        "Table 1",
        "Theorem 1",
        "Eq. 4",
        "Eq. 15",
        "Algorithm 1",
        *(f"Appendix {a}" for a in "BCDE"),
    ):
        row = next(line for line in text.splitlines() if line.startswith("|") and item in line)
        assert ROLE.search(row), row
    for item in ("Tables 2 and 5", "Table 3", "Table 4", "Figures 3 and 4", "Figure 5", "Figures 6 to 8"):
        row = next(line for line in text.splitlines() if line.startswith("|") and item in line)
        assert ROLE.search(row), row


@pytest.mark.parametrize("page", [page for page in PAGES if found(page)], ids=lambda page: page.stem)
def test_every_object_named_on_a_page_exists(page: Path, references):
    missing = [name for name in found(page) if references.find(name) is references.MISSING]
    assert not missing


def test_nonexistent_name_is_reported_missing(references):
    assert references.find("invertible_attention.Nothing") is references.MISSING
    assert references.find("invertible_attention.InvertibleAttention.nothing") is references.MISSING


def test_the_quick_start_runs(tmp_path: Path):
    blocks = re.findall(
        r"^```python\n(.*?)^```$", (DOCS / "quickstart.md").read_text(), re.DOTALL | re.MULTILINE
    )
    assert len(blocks) > 3
    script = tmp_path / "quickstart.py"
    script.write_text("\n".join(blocks))
    runpy.run_path(str(script))


def test_the_paper_s_items_have_commands():
    text = (DOCS / "paper.md").read_text(encoding="utf-8")
    section = text.partition("## How do I reproduce Table N?")[2].partition("\n## ")[0]
    for item in (
        "Table 2",
        "Table 3",
        "Table 4",
        "Table 5",
        "Figures 3 and 4",
        "Figure 5",
        "Figures 6, 7 and 8",
    ):
        assert re.search(rf"^\|[^|]*{item}\b", section, re.MULTILINE), item
    assert len(re.findall(r"^\|[^|]*\| `invertible-attention ", section, re.MULTILINE)) > 10


def test_every_command_on_the_pages_parses():
    from cyclopts import MissingArgumentError, ValidationError

    from invertible_attention.cli.application import build

    app = build()
    pages = [DOCS.parent / "README.md", *DOCS.rglob("*.md")]
    # In a code block, where an option may have a line of its own, or in the text.
    written = re.compile(
        r"^\s*invertible-attention ([a-z](?:[^\n#\\]|\\\n)*)|`invertible-attention ([a-z][^`]*)`",
        re.MULTILINE,
    )
    found = 0
    for page in pages:
        for block, inline in written.findall(page.read_text(encoding="utf-8")):
            words = shlex.split((block or inline).replace("\\\n", " "))
            if "[OPTIONS]" in words or "COMMAND" in words:
                continue
            found += 1
            # A command may be named without its arguments, and with files that are not here.
            with suppress(MissingArgumentError if len(words) < 3 else ValidationError):
                app.parse_args(words, exit_on_error=False, print_error=False)
    assert found > 40
