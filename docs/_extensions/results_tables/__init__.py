"""The directive ``results``: tables written from the files under ``results/``, never by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from results_tables import audits, densities, detection, estimators, reconstruction, speed, trust
from results_tables.markdown import Table

__all__ = ["RESULTS", "TABLES", "render", "setup"]

UNKNOWN = "is in a format this page does not know"

RESULTS = Path(__file__).resolve().parents[3] / "results"

TABLES: dict[str, Table] = {
    table.name: table
    for module in (reconstruction, speed, estimators, densities, detection, audits, trust)
    for table in module.TABLES
}
"""Every table the pages may ask for, by name."""


def render(name: str, results: Path = RESULTS) -> str:
    """Return a table as Markdown; where its files are absent, a line that says which command writes them.

    Raises:
        KeyError: for a name that is not in :data:`TABLES`.
    """
    table = TABLES[name]
    paths = table.files(results)
    if not paths:
        return f"*Not measured in this copy: `{table.command}` writes `results/{table.folder}`.*\n"
    return "\n\n".join(filter(None, (_write(table, path, results) for path in paths))) + "\n"


def _write(table: Table, path: Path, results: Path) -> str:
    try:
        return table.write(path)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        # A page is not the place to find out; a test does.
        return f"*`results/{path.relative_to(results)}` {UNKNOWN}.*"


class Results(SphinxDirective):
    """Insert a table; it is written again when its files change."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]
        if name not in TABLES:
            raise self.error(f"no table {name!r}: there are {', '.join(TABLES)}")
        for path in TABLES[name].files(RESULTS):
            self.env.note_dependency(str(path))
        if not TABLES[name].files(RESULTS):
            self.env.note_reread()
        container = nodes.container()
        lines = StringList(render(name).splitlines(), source=f"<results {name}>")
        self.state.nested_parse(lines, self.content_offset, container)
        return container.children


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("results", Results)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
