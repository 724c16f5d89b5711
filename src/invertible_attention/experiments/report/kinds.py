"""Every kind of result: its schema, what writes it, and what is shown of it.

A kind is declared once, in the ``tables`` module of the experiment that writes it, or in a module of
:mod:`~invertible_attention.experiments.measurements`. Nothing else changes: the terminal, the page of a run,
the page over all results, the documentation and the README are rendered from the sections declared there.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from .section import Section

__all__ = ["Definition", "Kind", "Result", "definitions", "kind_of", "kinds", "result_of"]

PREFIX = "invertible-attention/"
PACKAGE = __name__.rsplit(".", 2)[0]


@dataclass(frozen=True)
class Kind:
    """A kind of results file.

    Args:
        name: the schema's name.
        title: what the kind is called in lists.
        command: what writes such files.
        version: of the schema; grows when the meaning of a field changes.
        changed: what the second version has otherwise than the first, if anything: the name of a field, wherever it is
            in a file, and how its value comes from the earlier one.
        unshown: fields that no table shows, as paths with ``*`` for every item, and why. A path includes everything
            below it. Every other field is shown, which a test verifies by changing it.
    """

    name: str
    title: str
    command: str
    version: int = 1
    changed: tuple[str, Callable[[Any], Any]] | None = None
    unshown: Mapping[str, str] = field(default_factory=dict)

    @property
    def schema(self) -> str:
        """What files of this kind carry as ``schema``."""
        return f"{PREFIX}{self.name}/{self.version}"


@dataclass(frozen=True)
class Result:
    """A results file that was read.

    Args:
        kind: which kind it is.
        name: what it is called on a page.
        path: the file.
        content: what is in it.
    """

    kind: Kind
    name: str
    path: Path
    content: dict[str, Any]

    @property
    def folder(self) -> Path:
        """Where its figures are."""
        return self.path.parent


@dataclass(frozen=True)
class Definition:
    """What is shown of one or more kinds of results that belong together.

    Args:
        kinds: which.
        sections: returns the sections of results of these kinds.
        place: where the sections are on a page, from small to large.
    """

    kinds: tuple[Kind, ...]
    sections: Callable[[Sequence[Result]], list[Section]]
    place: int

    @classmethod
    def of_each(cls, kind: Kind, section: Callable[[Result], Section], place: int) -> Definition:
        """Return the definition of a kind whose results have one section each, none of them about another's."""
        return cls((kind,), lambda results: [section(result) for result in results], place)


@cache
def definitions() -> tuple[Definition, ...]:
    """Return every definition, in the order of a page."""
    found = []
    for name in _modules():
        definition = getattr(importlib.import_module(name), "DEFINITION", None)
        if isinstance(definition, Definition):
            found.append(definition)
    return tuple(sorted(found, key=lambda definition: definition.place))


def _modules() -> list[str]:
    experiments = importlib.import_module(PACKAGE)
    names = []
    for package in pkgutil.iter_modules(experiments.__path__, f"{PACKAGE}."):
        if package.name == f"{PACKAGE}.measurements":
            inside = importlib.import_module(package.name).__path__
            names += [module.name for module in pkgutil.iter_modules(inside, f"{package.name}.")]
        elif package.ispkg and importlib.util.find_spec(f"{package.name}.tables") is not None:
            names.append(f"{package.name}.tables")
    return names


@cache
def kinds() -> Mapping[str, Kind]:
    """Return every kind by its schema."""
    return {kind.schema: kind for definition in definitions() for kind in definition.kinds}


def kind_of(content: Any) -> Kind | None:
    """Return the kind of a results file's content; ``None`` for anything else.

    Example:
        >>> kind_of({"schema": "invertible-attention/reconstruct/2"}).title, kind_of({"schema": "other"}), kind_of([])
        ('reconstruction (Tables 2 and 5)', None, None)
    """
    schema = content.get("schema") if isinstance(content, dict) else None
    return kinds().get(schema) if isinstance(schema, str) else None


def result_of(content: dict[str, Any], folder: Path) -> Result:
    """Return the result that a run has just measured, and is about to leave in its folder."""
    kind = kind_of(content)
    assert kind is not None
    return Result(kind, folder.name, folder / "results.json", content)
