"""The error an adapter raises where the library it adapts to is not installed."""

from __future__ import annotations

from .._install import install_line

__all__ = ["missing"]


def missing(library: str, error: ImportError) -> ImportError:
    """Return an error that names the library, the reason and the extra that brings it."""
    return ImportError(
        f"this adapter needs {library}, which cannot be imported ({error}): {install_line('interop')}"
    )
