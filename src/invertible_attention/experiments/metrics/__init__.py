"""Measures of how well an experiment did."""

from __future__ import annotations

from .images import (
    SSIM_WINDOW,
    V_SCORE_LIMIT,
    ReconstructionScores,
    mean_squared_error,
    structural_similarity,
    v_score,
)

__all__ = [
    "SSIM_WINDOW",
    "V_SCORE_LIMIT",
    "ReconstructionScores",
    "mean_squared_error",
    "structural_similarity",
    "v_score",
]
