"""Small strips, so that small problems are cut into several."""

from __future__ import annotations

import pytest

from invertible_attention.attention.functional import strips


@pytest.fixture
def small_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut two rows at a time, and the batch into single samples."""
    monkeypatch.setattr(strips, "_STRIP_SCORES", {"cpu": 40})
    monkeypatch.setattr(strips, "_FEWEST_ROWS", 2)
