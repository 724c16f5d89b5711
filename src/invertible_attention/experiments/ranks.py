"""Which of the processes that train together this one is."""

from __future__ import annotations

import os

__all__ = ["is_first_process"]

# What Lightning takes the rank from when it is imported, in its order.
_VARIABLES = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")


def is_first_process() -> bool:
    """Whether this is the process that writes results, of all those that train together.

    Lightning keeps the rank. Before something has imported it, which takes many times longer than everything else that
    a worker of a study may need, the rank is what it would be set to.
    """
    from lightning_utilities.core.rank_zero import rank_zero_only

    rank = getattr(rank_zero_only, "rank", None)
    if rank is None:
        rank = int(next((os.environ[name] for name in _VARIABLES if name in os.environ), 0))
    return rank == 0
