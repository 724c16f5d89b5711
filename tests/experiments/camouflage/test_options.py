from __future__ import annotations

import pytest

pytest.importorskip("cyclopts")
pytest.importorskip("lightning")

from invertible_attention.cli.options import Spread
from invertible_attention.experiments.errors import UsageError


def test_a_batch_is_shared_evenly_or_not_at_all() -> None:
    parallel = Spread(2, 2).parallel(batch_size=4, precision="bf16-mixed")
    assert (parallel.processes, parallel.precision) == (4, "bf16-mixed")
    with pytest.raises(UsageError, match="--batch-size 4 cannot be shared evenly by 3 devices"):
        Spread(3).parallel(batch_size=4, precision="32-true")
