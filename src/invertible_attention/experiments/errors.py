"""Errors of an experiment that its user can fix."""

from __future__ import annotations

__all__ = ["ExperimentError", "UsageError"]


class ExperimentError(Exception):
    """A failure the user can fix; its message says what is wrong and what to do, on one line."""


class UsageError(ValueError):
    """A setting or an option that cannot be used; its message names it and shows its value, on one line."""
