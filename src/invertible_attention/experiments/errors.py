"""What an experiment tells its user when it cannot continue."""

from __future__ import annotations

__all__ = ["ExperimentError"]


class ExperimentError(Exception):
    """A failure the user can fix; its message says what is wrong and what to do, on one line."""
