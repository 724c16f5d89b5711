"""Write the tables of the README and of the pages under docs/, or check that they are current.

python scripts/update_tables.py [--check]

A table stands between two comments, of which the first says what it is:

- ``<!-- results: density-study.comparison digits !*-times -->`` from the files under results/: a kind of results and
  the name of one of its tables, of the folders that match the patterns and none of those with ``!``; all by default;
- ``<!-- table: … -->`` the same without title, caption and sources;
- ``<!-- code: commands -->`` from the code, as is ``<!-- code: options -->``, the help of every command.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from unittest.mock import patch

from invertible_attention.attention.functional import IMPLEMENTATIONS
from invertible_attention.cli.application import build
from invertible_attention.cli.commands import COMMANDS
from invertible_attention.experiments.report.kinds import Kind, Result, kinds
from invertible_attention.experiments.report.render import section_markdown, to_markdown
from invertible_attention.experiments.report.results import find_results
from invertible_attention.experiments.report.summary import build_sections

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"

PLACE = re.compile(r"(<!-- (results|table|code): (\S+)((?: \S+)*) -->)\n.*?(?<=\n)(<!-- end -->)", re.DOTALL)


def pages() -> list[Path]:
    """Return the files that may have tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def update(text: str) -> str:
    """Return a page with its tables written again."""

    def write(found: re.Match[str]) -> str:
        start, form, table, patterns, end = found.groups()
        written = CODE[table]() if form == "code" else render(table, patterns.split(), alone=form == "table")
        return f"{start}\n\n{written}\n{end}"

    return PLACE.sub(write, text)


def render(table: str, patterns: Sequence[str] = (), results: Path = RESULTS, *, alone: bool = False) -> str:
    """Return a table as Markdown; where its files are absent, a line that says which command writes them.

    Args:
        table: the kind of results and the name of the table, ``density-study.comparison``.
        patterns: names of the folders to read; one with ``!`` excludes folders; all by default.
        results: where the folders are.
        alone: whether to leave out title, caption and sources.

    Raises:
        ValueError: for a kind or a table that does not exist, or a file of an unknown kind.
    """
    name, _, wanted = table.partition(".")
    kind = _kind(name)
    found = [
        result for result in _read(results) if result.kind == kind and _matches(result.folder.name, patterns)
    ]
    if not found:
        return f"*Not measured in this copy: `{kind.command}` writes it.*\n"
    sections = build_sections(found)
    known = {one.name: one for section in sections for one in section.tables}
    if wanted not in known:
        raise ValueError(f"no table {wanted!r} among those of {name}: there are {', '.join(known)}")
    if alone:
        return to_markdown(known[wanted]) + "\n"
    return "\n\n".join(filter(None, (section_markdown(section, [wanted]) for section in sections))) + "\n"


def _kind(name: str) -> Kind:
    by_name = {kind.name: kind for kind in kinds().values()}
    if name not in by_name:
        raise ValueError(f"no results of kind {name!r}: there are {', '.join(by_name)}")
    return by_name[name]


@cache
def _read(results: Path) -> tuple[Result, ...]:
    if not results.is_dir():
        return ()
    found, unknown = find_results([results])
    if unknown:
        raise ValueError(f"results of unknown kinds: {'; '.join(unknown)}")
    return tuple(found)


def _matches(folder: str, patterns: Sequence[str]) -> bool:
    without = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    among = [pattern for pattern in patterns if not pattern.startswith("!")] or ["*"]
    return any(fnmatch(folder, one) for one in among) and not any(fnmatch(folder, one) for one in without)


def _commands() -> str:
    """List the subcommands with their help."""
    rows = [[f"`invertible-attention {command.name}`", command.help] for command in COMMANDS]
    return _grid(["command", "what it does"], rows)


def _implementations() -> str:
    """List the implementations of attention, in order of preference."""
    rows = [[f"`{found.name}`", found.cost, found.reason] for found in IMPLEMENTATIONS]
    return _grid(["implementation", "cost", "why"], rows)


def _grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _options() -> str:
    """Describe every command, its options and their defaults, as ``--help`` does."""
    # The usage of a part starts with the running program, of which cyclopts replaces one word.
    with patch.object(sys, "argv", ["invertible-attention"]):
        text = build().generate_docs()
    return re.sub(r"## Table of Contents\n.*?(?=\*\*Commands)", "", text, count=1, flags=re.DOTALL)


CODE = {"commands": _commands, "options": _options, "implementations": _implementations}


def main() -> int:
    """Update the pages, or return 1 and name those that ``--check`` finds out of date."""
    stale = 0
    for page in pages():
        old = page.read_text(encoding="utf-8")
        new = update(old)
        if new == old:
            continue
        print(page.relative_to(ROOT))
        if "--check" in sys.argv[1:]:
            stale = 1
        else:
            page.write_text(new, encoding="utf-8")
    return stale


if __name__ == "__main__":
    raise SystemExit(main())
