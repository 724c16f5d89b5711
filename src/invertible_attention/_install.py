"""Which packages an extra needs, and the line that installs them from where this package came from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import unquote, urlsplit

__all__ = ["install_line", "missing_packages"]

NAME = "invertible-attention"

REQUIREMENT = re.compile(
    r"(?P<name>[\w.-]+)\s*(\[(?P<extras>[^]]*)\])?[^;]*(;.*\bextra\s*==\s*['\"](?P<extra>[\w.-]+)['\"])?.*"
)
"""An entry of the metadata, such as ``zuko>=1.4; extra == 'interop'``."""


def install_line(extra: str, own: Distribution | None = None) -> str:
    """Return the command that installs an extra: from the checkout, archive or repository that was installed.

    Args:
        extra: its name.
        own: metadata of this package; those of the installed one by default.
    """
    own = own or _own()
    origin = json.loads((own and own.read_text("direct_url.json")) or "{}")
    url = origin.get("url", "")
    if "dir_info" in origin:
        folder = Path(unquote(urlsplit(url).path))
        what = f"{'.' if folder == Path.cwd() else folder}[{extra}]"
        return f'pip install {"--editable " if origin["dir_info"].get("editable") else ""}"{what}"'
    if "vcs_info" in origin:
        url = f"{origin['vcs_info']['vcs']}+{url}"
    return f'pip install "{NAME}[{extra}]{" @ " if url else ""}{url}"'


def missing_packages(extra: str, own: Distribution | None = None) -> list[str]:
    """Return the packages of an extra, and of the extras in it, that are not installed.

    Args:
        extra: its name.
        own: metadata of this package; those of the installed one by default, and without any nothing is missing.
    """
    own = own or _own()
    return [name for name in dict.fromkeys(_packages(own, extra)) if not _installed(name)] if own else []


def _packages(own: Distribution, extra: str) -> Iterator[str]:
    for found in filter(None, map(REQUIREMENT.fullmatch, own.requires or ())):
        if found["extra"] != extra:
            continue
        if found["name"] == NAME:
            for inner in (found["extras"] or "").split(","):
                yield from _packages(own, inner.strip())
        else:
            yield found["name"]


def _installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def _own() -> Distribution | None:
    try:
        return distribution(NAME)
    except PackageNotFoundError:
        return None
