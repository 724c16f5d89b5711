"""Which result folders are there, and of what kind: told by the JSON file in them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import ExperimentError
from ..files import read_json

__all__ = ["KINDS", "Result", "find_results", "kind_of"]

KINDS = {
    "reconstruct": "reconstruction (Tables 2 and 5)",
    "density": "density (Table 3)",
    "density-study": "comparison of densities (Table 3)",
    "conditional": "conditional density",
    "logdet": "log-determinant estimators",
    "camouflage": "camouflaged objects (Table 4)",
    "camouflage-measure": "cost of the detector",
    "compiled": "compiled solves",
    "benchmark": "time and memory",
    "audit": "audit of trained networks",
    "attack": "search for a layer above its bound",
}
"""Every kind of result, and what to call it."""

SCHEMAS = {
    "invertible-attention/reconstruct/1": "reconstruct",
    "invertible-attention/density-study/1": "density-study",
    "invertible-attention/camouflage/1": "camouflage",
    "invertible-attention/camouflage-measure/1": "camouflage-measure",
    "invertible-attention/logdet/1": "logdet",
    "invertible-attention/audit/1": "audit",
    "invertible-attention/attack/1": "attack",
}
KEYS = (
    ("density", {"name", "configuration", "evaluation", "curve", "run"}),
    ("conditional", {"data", "log_determinant", "unconditional", "conditional"}),
    ("conditional", {"data", "log_determinant", "bits_per_dim", "seeds", "gain"}),
    ("compiled", {"what", "repeats", "cases", "metadata"}),
    ("benchmark", {"times", "memory", "growth", "claims", "metadata"}),
)
"""What files without a schema are known by."""

MAIN_FILES = ("results.json", "study.json", "benchmark.json")
"""Files that cannot be anything but results, known or not."""


@dataclass(frozen=True)
class Result:
    """A result that was found.

    Args:
        kind: a name from :data:`KINDS`.
        name: what to call it on the page.
        path: the file.
        content: what is in it.
    """

    kind: str
    name: str
    path: Path
    content: dict[str, Any]

    @property
    def folder(self) -> Path:
        """Where its figures are."""
        return self.path.parent


def kind_of(content: Any) -> str | None:
    """Return the kind of a result, ``None`` for anything else.

    Example:
        >>> kind_of({"schema": "invertible-attention/reconstruct/1"}), kind_of({"schema": "another"}), kind_of([])
        ('reconstruct', None, None)
    """
    if not isinstance(content, dict):
        return None
    if "schema" in content:
        return SCHEMAS.get(content["schema"])
    return next((kind for kind, keys in KEYS if keys <= content.keys()), None)


def find_results(paths: Sequence[Path]) -> tuple[list[Result], list[str]]:
    """Return the results in folders; a folder that holds none itself is searched.

    Args:
        paths: folders, or result files.

    Returns:
        What was found, in the order of the folders, each once; and the names of folders found by searching that
        hold a result of an unknown kind.

    Raises:
        ExperimentError: naming a folder that does not exist, holds no result, or itself holds one of an unknown
            kind.
    """
    found: dict[Path, Result] = {}
    left_out: dict[Path, None] = {}
    for path in paths:
        if not path.exists():
            raise ExperimentError(f"there is no folder {path}")
        here = path.resolve()
        known, unknown = _within(here)
        if not known and not unknown:
            raise ExperimentError(
                f"{path} holds no results of this program: it looks for {', '.join(MAIN_FILES[:-1])} "
                f"or {MAIN_FILES[-1]} as written by {', '.join(KINDS)}"
            )
        for file in unknown:
            if not known or file.parent == here or file == here:
                raise _unknown(file)
        for result in known:
            found.setdefault(result.path, result)
        left_out |= dict.fromkeys(file.parent for file in unknown)
    return _named(list(found.values())), [folder.name for folder in left_out]


def _within(path: Path) -> tuple[list[Result], list[Path]]:
    """Return the results in a folder or below it, and the files of unknown kinds."""
    if path.is_file():
        result = _read(path)
        return ([], [path]) if result is None else ([result], [])
    files = sorted(path.glob("*.json"))
    known = [result for file in files if (result := _read(file)) is not None]
    taken = {result.path for result in known}
    unknown = [
        file
        for file in files
        if file not in taken and (file.name in MAIN_FILES or (not known and _ours(file)))
    ]
    if known or unknown:
        return known, unknown
    for entry in sorted(path.iterdir()):
        if entry.is_dir() and not entry.is_symlink() and not entry.name.startswith("."):
            below, strange = _within(entry)
            known += below
            unknown += strange
    return known, unknown


def _read(file: Path) -> Result | None:
    """Read a result; ``None`` for a file that is none this version knows."""
    if file.name in MAIN_FILES:
        content = read_json(file)
    else:
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
    kind = kind_of(content)
    return None if kind is None else Result(kind, file.parent.name, file, content)


def _ours(file: Path) -> bool:
    """Tell whether a file was written by this program, in whatever version."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    schema = content.get("schema") if isinstance(content, dict) else None
    return isinstance(schema, str) and schema.startswith("invertible-attention/")


def _unknown(file: Path) -> ExperimentError:
    return ExperimentError(
        f"{file.parent} holds a {file.name} of a kind this version does not know: known are {', '.join(KINDS)}"
    )


def _named(results: list[Result]) -> list[Result]:
    """Name every result by the shortest end of its folder's path that tells it from the others."""

    def name(result: Result, parts: int) -> str:
        return "/".join(result.folder.parts[-parts:])

    named = []
    for result in results:
        others = [other for other in results if other.folder != result.folder]
        parts = 1
        while any(name(other, parts) == name(result, parts) for other in others):
            parts += 1
        named.append(replace(result, name=name(result, parts)))
    return named
