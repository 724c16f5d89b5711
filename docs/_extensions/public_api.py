"""The directive ``public-api``: every public name of a package, documented once."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import nested_parse_with_titles

__all__ = ["PACKAGES", "home", "public_names", "setup"]

PACKAGES = (
    "invertible_attention.attention",
    "invertible_attention.attention.functional",
    "invertible_attention.lipschitz",
    "invertible_attention.lipschitz.certificate",
    "invertible_attention.solvers",
    "invertible_attention.logdet",
    "invertible_attention.flows",
    "invertible_attention.interop",
    "invertible_attention.hub",
    "invertible_attention",
)
"""The public packages. An object that several of them offer is documented under the first."""


def public_names(package: str) -> list[str]:
    """Return a package's public names, without its public subpackages."""
    module = import_module(package)
    return [name for name in sorted(module.__all__) if not inspect.ismodule(getattr(module, name))]


def home(package: str, name: str) -> str:
    """Return the package under which ``package.name`` is documented."""
    found = getattr(import_module(package), name)
    for candidate in PACKAGES:
        if name in public_names(candidate) and getattr(import_module(candidate), name) is found:
            return candidate
    return package


def _is_type_alias(found: Any) -> bool:
    return not inspect.isclass(found) and not inspect.isroutine(found)


class PublicAPI(SphinxDirective):
    """Document a package; with ``:summary:`` only list its names, with their first lines."""

    required_arguments = 1
    option_spec: ClassVar = {"summary": directives.flag}

    def run(self) -> list[nodes.Node]:
        package = self.arguments[0]
        lines = self._summary(package) if "summary" in self.options else self._full(package)
        container = nodes.container()
        content = StringList(list(lines), source=f"<{package}>")
        nested_parse_with_titles(self.state, content, container)
        return container.children

    def _full(self, package: str) -> Iterator[str]:
        yield f".. automodule:: {package}"
        yield "   :no-members:"
        yield ""
        elsewhere = []
        for name in public_names(package):
            if home(package, name) != package:
                elsewhere.append(name)
                continue
            found = getattr(import_module(package), name)
            kind = "class" if inspect.isclass(found) else "function" if inspect.isroutine(found) else "data"
            yield f".. auto{kind}:: {package}.{name}"
            if _is_type_alias(found):
                yield "   :no-value:"
            yield ""
        if elsewhere:
            yield "Documented elsewhere:"
            yield ""
            for name in elsewhere:
                yield f"- {_link(package, name)}"
            yield ""

    def _summary(self, package: str) -> Iterator[str]:
        yield ".. list-table::"
        yield "   :widths: 30 70"
        yield ""
        for name in public_names(package):
            yield f"   * - {_link(package, name)}"
            yield f"     - {_first_line(getattr(import_module(package), name))}"
        yield ""


def _link(package: str, name: str) -> str:
    return f":py:obj:`{name} <{home(package, name)}.{name}>`"


def _first_line(found: Any) -> str:
    line = (inspect.getdoc(found) or "").partition("\n\n")[0].replace("\n", " ")
    line = f"{line[:-1]}." if line.endswith(":") else line
    # Short names of methods mean something only next to their class.
    return re.sub(r":(?:meth|attr):`~?([^`]*)`", r"``\1``", line)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("public-api", PublicAPI)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
