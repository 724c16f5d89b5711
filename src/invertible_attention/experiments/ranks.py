"""Which of the processes that train together this one is."""

from __future__ import annotations

import os
import sys

__all__ = ["is_first_process"]

# What Lightning takes the rank from when it is imported, in its order.
_VARIABLES = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")


def is_first_process() -> bool:
    """Whether this is the process that writes results, of all those that train together.

    Lightning keeps the rank once it is imported. Importing it takes seconds, so until something else does, the rank is
    read from the environment variables that Lightning would read.
    """
    lightning = sys.modules.get("lightning.fabric.utilities.rank_zero")
    rank = getattr(getattr(lightning, "rank_zero_only", None), "rank", None)
    if rank is None:
        rank = int(next((os.environ[name] for name in _VARIABLES if name in os.environ), 0))
    return rank == 0
