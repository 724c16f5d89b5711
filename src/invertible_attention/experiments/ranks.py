"""Which of the processes that train together this one is."""

from __future__ import annotations

__all__ = ["is_first_process"]


def is_first_process() -> bool:
    """Whether this is the process that writes results, of all those that train together."""
    # Imported when asked: what reads a folder needs no Lightning.
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    return rank_zero_only.rank == 0  # pyright: ignore[reportFunctionMemberAccess]
