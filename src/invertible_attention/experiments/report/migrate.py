"""Bring results files of earlier versions to today's schema: what was measured stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import ExperimentError
from ..files import read_json, write_json
from .kinds import PREFIX, kinds

__all__ = ["migrate", "migrated"]

UNNAMED = (
    ("density/1", {"name", "configuration", "evaluation", "curve", "run"}),
    ("conditional/1", {"data", "log_determinant", "bits_per_dim", "seeds", "gain"}),
    ("compiled/1", {"what", "repeats", "cases", "metadata"}),
    ("benchmark/1", {"times", "memory", "growth", "claims", "metadata"}),
)
"""Schemas of files that were written without one, and the keys they are known by."""


def _changed(value: Any, key: str, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, list):
        return [_changed(item, key, change) for item in value]
    if isinstance(value, dict):
        return {k: change(v) if k == key else _changed(v, key, change) for k, v in value.items()}
    return value


def migrated(content: Any) -> dict[str, Any] | None:
    """Return a file's content as today's version writes it; ``None`` for what is not, or need not be, migrated.

    Example:
        >>> migrated({"what": "", "repeats": 1, "cases": {}, "metadata": {}})["schema"]
        'invertible-attention/compiled/1'
        >>> migrated({"schema": "invertible-attention/camouflage-measure/1", "models": [{"model": "inv-gaussian"}]})
        {'schema': 'invertible-attention/camouflage-measure/2', 'models': [{'model': 'gaussian/relaxed'}]}
        >>> migrated({"schema": "invertible-attention/compiled/1"}) is None
        True
    """
    if not isinstance(content, dict):
        return None
    if "schema" in content:
        name, _, version = str(content["schema"]).rpartition("/")
        kind = kinds().get(f"{name}/2") if version == "1" else None
        if kind is None or kind.changed is None:
            return None
        return _changed(content, *kind.changed) | {"schema": kind.schema}
    name = next((name for name, keys in UNNAMED if keys <= content.keys()), None)
    if name is None:
        return None
    run = {"run": content["metadata"]} if "metadata" in content else {}
    kept = {key: value for key, value in content.items() if key != "metadata"}
    return {"schema": PREFIX + name} | kept | run


def migrate(folders: Sequence[Path]) -> list[Path]:
    """Rewrite every results file of an earlier version in folders and below them; return their paths.

    Raises:
        ExperimentError: naming a folder that does not exist, or a file that is damaged.
    """
    changed = []
    for folder in folders:
        if not folder.is_dir():
            raise ExperimentError(f"there is no folder {folder}")
        for path in sorted(folder.rglob("*.json")):
            content = migrated(read_json(path))
            if content is not None:
                write_json(path, content)
                changed.append(path)
    return changed
