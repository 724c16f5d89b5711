"""Which results are in a folder, by the schema of the JSON files in it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import ExperimentError
from ..files import read_json
from .kinds import PREFIX, Result, kind_of, kinds
from .migrate import migrated

__all__ = ["find_results"]

MAIN_FILES = ("results.json", "study.json", "benchmark.json")
"""Files that cannot be anything but results, known or not."""

INSIDE = ("cells", "figures", "logs")
"""Folders that belong to the run around them."""


def find_results(paths: Sequence[Path]) -> tuple[list[Result], list[str]]:
    """Return the results in folders and in all folders below them.

    Args:
        paths: folders, or results files.

    Returns:
        What was found, in the order of the folders, each once; and a line for every file found by searching whose
        kind this version does not know.

    Raises:
        ExperimentError: naming a folder that does not exist or holds no result, a file that was asked for and whose
            schema is unknown, or a damaged file.
    """
    found: dict[Path, Result] = {}
    unknown: dict[str, None] = {}
    for path in paths:
        if not path.exists():
            raise ExperimentError(f"there is no folder {path}")
        asked = path.resolve()
        here, refused = [], []
        for file in [asked] if asked.is_file() else _files(asked):
            content = _content(file)
            kind = kind_of(content)
            if kind is not None:
                here.append(Result(kind, file.parent.name, file, content))
            elif file == asked or file.name in MAIN_FILES or _ours(content):
                refused.append((file, _reason(content)))
        for file, reason in refused:
            if not here or file == asked or (file.parent == asked and file.name in MAIN_FILES):
                raise ExperimentError(f"{file}: {reason}")
            unknown[f"{file.relative_to(asked)} ({reason})"] = None
        if not here:
            *others, last = (
                kind.command for kind in kinds().values() if kind.command.startswith(PREFIX[:-1])
            )
            raise ExperimentError(
                f"{path} holds no results of this program: none of its files was written by {', '.join(others)} "
                f"or {last}"
            )
        for result in here:
            found.setdefault(result.path, result)
    return _named(list(found.values())), list(unknown)


def _files(folder: Path) -> Iterator[Path]:
    yield from sorted(folder.glob("*.json"))
    for entry in sorted(folder.iterdir()):
        hidden = entry.name.startswith(".") or entry.name in INSIDE
        if entry.is_dir() and not entry.is_symlink() and not hidden:
            yield from _files(entry)


def _content(file: Path) -> Any:
    if file.name in MAIN_FILES:
        return read_json(file)
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _ours(content: Any) -> bool:
    """Return whether a file was written by this program, in whatever version."""
    schema = content.get("schema") if isinstance(content, dict) else None
    return isinstance(schema, str) and schema.startswith(PREFIX)


def _reason(content: Any) -> str:
    if not isinstance(content, dict) or "schema" not in content:
        return "has no schema: `invertible-attention report --migrate FOLDER` adds it to files of earlier versions"
    if migrated(content) is not None:
        return "is of an earlier version: `invertible-attention report --migrate FOLDER` rewrites it"
    return f"schema {content['schema']!r} is not known to this version"


def _named(results: list[Result]) -> list[Result]:
    """Name every result by the shortest end of its path that distinguishes it from the others."""
    folders = [result.folder for result in results]

    def parts(result: Result) -> tuple[str, ...]:
        alone = folders.count(result.folder) == 1 or result.path.name in MAIN_FILES
        return result.folder.parts if alone else (*result.folder.parts, result.path.stem)

    named = []
    for result in results:
        own = parts(result)
        others = [parts(other) for other in results if other.path != result.path]
        count = 1 if own == result.folder.parts else 2
        while any(other[-count:] == own[-count:] for other in others) and count < len(own):
            count += 1
        named.append(replace(result, name="/".join(own[-count:])))
    return named
