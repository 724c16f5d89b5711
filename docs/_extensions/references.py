"""References in docstrings find their object under whatever name it was written.

``:class:`~invertible_attention.Anderson``` and ``:class:`Anderson``` inside a module mean one object, which the site
documents once. A name that leads to an object the site does not document is shown as code, if it exists; a name that
leads nowhere stays unresolved, which fails the build.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

from public_api import PACKAGES, home, public_names

__all__ = ["setup"]

ROOT = "invertible_attention"
MISSING = object()


def find(name: str) -> Any:
    """Return the object with a dotted name, or ``MISSING``."""
    module, _, rest = name, "", ""
    while module:
        try:
            found: Any = import_module(module)
        except ImportError:
            module, _, last = module.rpartition(".")
            rest = f"{last}.{rest}" if rest else last
            continue
        for part in filter(None, rest.split(".")):
            found = (
                inspect.getattr_static(found, part, MISSING)
                if inspect.isclass(found)
                else getattr(found, part, MISSING)
            )
            if found is MISSING:
                return MISSING
        return found
    return MISSING


@cache
def documented() -> dict[int, str]:
    """Return the documented name of every public object, by identity."""
    names = {}
    for package in PACKAGES:
        for name in public_names(package):
            names.setdefault(id(find(f"{package}.{name}")), f"{home(package, name)}.{name}")
    return names


def inherited_from(found: Any) -> str | None:
    """Return the documented name of a method under the class that defines it."""
    owner, _, method = getattr(found, "__qualname__", "").rpartition(".")
    defined = documented().get(id(find(f"{getattr(found, '__module__', '')}.{owner}"))) if owner else None
    return f"{defined}.{method}" if defined else None


def candidates(node: addnodes.pending_xref) -> Iterator[str]:
    """Yield the full names a reference may mean, the most likely first."""
    target = node["reftarget"].lstrip(".")
    module, owner = node.get("py:module"), node.get("py:class")
    yield target
    yield f"{ROOT}.{target}"
    places = [module] if module else []
    for place in (f"{module}.{owner}" if module and owner else None, owner):
        found = find(place) if place else MISSING
        if found is not MISSING:
            # The class where it was written: its module's other names are in reach of its docstring.
            places += [place, getattr(found, "__module__", ROOT)]
    for place in filter(None, places):
        for start in _upwards(place):
            yield f"{start}.{target}"
    for package in PACKAGES:
        yield f"{package}.{target}"
    if module in PACKAGES:
        # A function says nothing of where it was written: try the modules of all that its package offers.
        for place in {getattr(find(f"{module}.{name}"), "__module__", None) for name in public_names(module)}:
            yield f"{place}.{target}"


def _upwards(name: str) -> Iterator[str]:
    while name.startswith(ROOT):
        yield name
        name = name.rpartition(".")[0]


def resolve(
    app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, content: nodes.TextElement
) -> Any:
    """Return a link to what a Python reference means."""
    if node.get("refdomain") != "py":
        return None
    domain = env.domains["py"]
    for name in candidates(node):
        if not name.startswith(ROOT):
            continue
        found = find(name)
        if found is MISSING:
            continue
        target = documented().get(id(found))
        if target is None:
            owner, _, attribute = name.rpartition(".")
            parent = documented().get(id(find(owner)))
            target = f"{parent}.{attribute}" if parent else name
        entry = domain.objects.get(target)
        if entry is None and (target := inherited_from(found)):
            entry = domain.objects.get(target)
        if entry is None:
            return content
        return _link(app, node, entry, target, content)
    return None


def _link(app: Sphinx, node: Any, entry: Any, target: str, content: nodes.TextElement) -> nodes.reference:
    from sphinx.util.nodes import make_refnode

    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, content, target)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the resolver."""
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
