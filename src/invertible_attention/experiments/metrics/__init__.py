"""Measures of how well an experiment did."""

from __future__ import annotations

from .images import (
    V_SCORE_LIMIT,
    ReconstructionScores,
    mean_squared_error,
    structural_similarity,
    v_score,
)

__all__ = [
    "V_SCORE_LIMIT",
    "ReconstructionScores",
    "mean_squared_error",
    "structural_similarity",
    "v_score",
]
