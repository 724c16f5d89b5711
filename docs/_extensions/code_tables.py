"""The directive ``code-table``: tables whose truth is in the code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

__all__ = ["TABLES", "setup"]


def commands() -> str:
    """List the subcommands with their help."""
    from invertible_attention.cli.commands import COMMANDS

    rows = [[f"`invertible-attention {command.name}`", command.help] for command in COMMANDS]
    return grid(["command", "what it does"], rows)


def implementations() -> str:
    """List the implementations of attention, in order of preference."""
    from invertible_attention.attention.functional import IMPLEMENTATIONS

    rows = [[f"`{found.name}`", found.cost, found.reason] for found in IMPLEMENTATIONS]
    return grid(["implementation", "cost", "why"], rows)


def grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of text in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


TABLES: dict[str, Callable[[], str]] = {"commands": commands, "implementations": implementations}


class CodeTable(SphinxDirective):
    """Insert a table written from the code."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        container = nodes.container()
        text = TABLES[self.arguments[0]]()
        lines = StringList(text.splitlines(), source=f"<code {self.arguments[0]}>")
        self.state.nested_parse(lines, self.content_offset, container)
        return container.children


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("code-table", CodeTable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
