"""Bring results files of earlier versions to today's schema: what was measured stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from ..camouflage.models import EARLIER, folder_today
from ..errors import ExperimentError
from ..files import read_json, write_json
from ..reconstruct.configuration import Cell, today
from ..variants import Normalization
from .kinds import PREFIX

__all__ = ["migrate", "migrated", "response_today"]

UNNAMED = (
    ("density/1", {"name", "configuration", "evaluation", "curve", "run"}),
    ("conditional/1", {"data", "log_determinant", "bits_per_dim", "seeds", "gain"}),
    ("compiled/1", {"what", "repeats", "cases", "metadata"}),
    ("benchmark/1", {"times", "memory", "growth", "claims", "metadata"}),
)
"""Schemas of files that were written without one, and the keys they are known by."""


def response_today(value: Any) -> Any:
    """Return a response, or what is stored by response, with the words that earlier versions divided by commas.

    Example:
        >>> response_today("dot_product, softplus"), response_today({"gaussian": 1}), response_today(2)
        ('dot_product/softplus', {'gaussian': 1}, 2)
    """
    if isinstance(value, dict):
        return {response_today(name): inner for name, inner in value.items()}
    return value.replace(", ", "/") if isinstance(value, str) else value


def _network(name: str) -> str:
    """Return what an audit calls a network that it called by its folder.

    Example:
        >>> _network("certified-row-dot_product-1"), _network("certified-dot-product-1")
        ('dot_product/certified/row, repeat 1', 'dot-product-certified-1')
    """
    constraint, normalization, response, repeat = (*name.split("-"), "", "", "")[:4]
    if normalization in get_args(Normalization):
        return str(Cell(response, constraint, normalization, int(repeat)))
    return folder_today(name)


CHANGED: Mapping[str, tuple[str, Callable[[Any], Any]]] = {
    "attack": ("response", response_today),
    "audit": ("network", _network),
    "camouflage": ("model", lambda name: EARLIER.get(name, name)),
    "camouflage-measure": ("model", lambda name: EARLIER.get(name, name)),
    "reconstruct": ("configuration", today),
}
"""The kinds whose second schema has other values of a key: which, and how they come from the first one's."""


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
        kind, _, version = str(content["schema"]).removeprefix(PREFIX).partition("/")
        if version != "1" or kind not in CHANGED:
            return None
        return _changed(content, *CHANGED[kind]) | {"schema": f"{PREFIX}{kind}/2"}
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
