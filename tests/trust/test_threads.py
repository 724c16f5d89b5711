"""Concurrent sampling and training of two models: no gradient is lost and no exception raised."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from threads import watch


def test_concurrent_gradients_are_complete_without_errors():
    torch.manual_seed(0)
    seen = watch(5.0)
    assert seen.errors == []
    assert {name: count for name, count in seen.counts.items() if name.endswith("lost") and count} == {}
    assert len(seen.counts) == 12
