"""Refusing to begin without the packages that will be needed."""

from __future__ import annotations

from .._install import install_line, missing_packages
from .errors import ExperimentError

__all__ = ["require"]


def require(extra: str, *packages: str) -> None:
    """Raise when packages of an extra are not installed.

    Args:
        extra: its name.
        packages: which of its packages are needed; all of them by default.

    Raises:
        ExperimentError: naming what is missing, and the command that installs it.
    """
    missing = [name for name in missing_packages(extra) if not packages or name in packages]
    if missing:
        plural = "s" if len(missing) > 1 else ""
        raise ExperimentError(f"this needs the package{plural} {', '.join(missing)}: {install_line(extra)}")
