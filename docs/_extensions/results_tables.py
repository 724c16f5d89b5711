"""The directive ``results``: tables written from the files under ``results/``, never by hand."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from invertible_attention.experiments.report.kinds import Kind, Result, kinds
from invertible_attention.experiments.report.render import section_markdown
from invertible_attention.experiments.report.results import find_results
from invertible_attention.experiments.report.summary import build_sections

__all__ = ["RESULTS", "render", "setup"]

RESULTS = Path(__file__).resolve().parents[2] / "results"


def render(table: str, patterns: Sequence[str] = (), results: Path = RESULTS) -> str:
    """Return a table as Markdown; where its files are absent, a line that says which command writes them.

    Args:
        table: the kind of results and the name of the table, ``density-study.comparison``.
        patterns: names of the folders to read; one with ``!`` excludes folders; all by default.
        results: where the folders are.

    Raises:
        ValueError: for a kind or a table that does not exist, or a file of an unknown kind.
    """
    return _markdown(table, _chosen(table, patterns, results))


def _markdown(table: str, found: Sequence[Result]) -> str:
    name, _, wanted = table.partition(".")
    if not found:
        return f"*Not measured in this copy: `{_kind(name).command}` writes it.*\n"
    sections = build_sections(found)
    known = list(dict.fromkeys(one.name for section in sections for one in section.tables))
    if wanted not in known:
        raise ValueError(f"no table {wanted!r} among those of {name}: there are {', '.join(known)}")
    return "\n\n".join(filter(None, (section_markdown(section, [wanted]) for section in sections))) + "\n"


def _kind(name: str) -> Kind:
    by_name = {kind.name: kind for kind in kinds().values()}
    if name not in by_name:
        raise ValueError(f"no results of kind {name!r}: there are {', '.join(by_name)}")
    return by_name[name]


def _chosen(table: str, patterns: Sequence[str], results: Path) -> list[Result]:
    kind = _kind(table.partition(".")[0])
    if not results.is_dir():
        return []
    found, unknown = find_results([results])
    if unknown:
        raise ValueError(f"results of unknown kinds: {'; '.join(unknown)}")
    without = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    among = [pattern for pattern in patterns if not pattern.startswith("!")] or ["*"]
    return [
        result
        for result in found
        if result.kind == kind
        and any(fnmatch(result.folder.name, pattern) for pattern in among)
        and not any(fnmatch(result.folder.name, pattern) for pattern in without)
    ]


class Results(SphinxDirective):
    """Insert a table; it is written again when its files change."""

    required_arguments = 1
    optional_arguments = 20

    def run(self) -> list[nodes.Node]:
        table, *patterns = self.arguments
        try:
            chosen = _chosen(table, patterns, RESULTS)
            text = _markdown(table, chosen)
        except ValueError as error:
            raise self.error(str(error)) from error
        for result in chosen:
            self.env.note_dependency(str(result.path))
        if not chosen:
            self.env.note_reread()
        container = nodes.container()
        lines = StringList(text.splitlines(), source=f"<results {table}>")
        self.state.nested_parse(lines, self.content_offset, container)
        return container.children


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("results", Results)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
