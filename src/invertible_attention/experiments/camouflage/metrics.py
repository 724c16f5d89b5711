"""How well a map fits a mask: the field's own evaluators, at the mask's size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, cast

import numpy as np
from jaxtyping import Bool, Float64, UInt8

__all__ = ["CONVENTIONS", "MEASURES", "THRESHOLDS", "Scores", "score_map"]

BETA_SQUARED = 0.3
ALPHA = 0.5

THRESHOLDS = np.arange(255, -1, -1)
"""The thresholds of the curves, descending: a pixel is the object's where the map reaches the threshold."""

MEASURES = {
    "s_measure": "S",
    "mean_f": "mean F",
    "mean_e": "mean E",
    "mae": "MAE",
    "max_f": "max F",
    "adaptive_f": "adaptive F",
    "max_e": "max E",
    "adaptive_e": "adaptive E",
    "weighted_f": "weighted F",
    "weighted_f_03": "weighted F, β² 0.3",
}
"""The single numbers, those of Table 4 first."""

CONVENTIONS = {
    "every score": "at the mask's size, of the map stretched by its least and largest value (min–max)",
    "S": "structure measure, α = 0.5 (Fan 2017)",
    "mean F, mean E": "means over 256 thresholds (Table 4's)",
    "max F, max E": "best of 256 thresholds, one threshold for the whole dataset",
    "adaptive F, adaptive E": "at twice the map's mean",
    "mean, max and adaptive F": "β² = 0.3",
    "weighted F": "Margolin 2014, β² = 1 as in its authors' code; some evaluators take β² = 0.3",
}
"""Which convention each score follows: published numbers are met with theirs only."""


@dataclass(frozen=True)
class Scores:
    """Scores of one map, or their means over the maps of a dataset.

    Args:
        mae: mean absolute error.
        s_measure: structure measure (Fan 2017), α = 0.5.
        weighted_f: weighted F-measure (Margolin 2014), β² = 1 as in its authors' code.
        weighted_f_03: the same with β² = 0.3, as some of the field's evaluators count it.
        adaptive_f: F-measure (β² = 0.3) at twice the map's mean.
        adaptive_e: enhanced-alignment measure (Fan 2018) at twice the map's mean.
        f_curve: F-measure at every one of :data:`THRESHOLDS`.
        e_curve: E-measure at every one of :data:`THRESHOLDS`.
    """

    mae: float
    s_measure: float
    weighted_f: float
    weighted_f_03: float
    adaptive_f: float
    adaptive_e: float
    f_curve: Float64[np.ndarray, "256"]
    e_curve: Float64[np.ndarray, "256"]

    @property
    def mean_f(self) -> float:
        """Mean over the thresholds, Table 4's F."""
        return float(self.f_curve.mean())

    @property
    def max_f(self) -> float:
        """Largest value of the curve; of a dataset, of its mean curve."""
        return float(self.f_curve.max())

    @property
    def mean_e(self) -> float:
        """Mean over the thresholds, Table 4's E."""
        return float(self.e_curve.mean())

    @property
    def max_e(self) -> float:
        """Largest value of the curve; of a dataset, of its mean curve."""
        return float(self.e_curve.max())

    @classmethod
    def mean(cls, scores: Sequence[Scores]) -> Scores:
        """Return the mean over maps, curves threshold by threshold.

        Raises:
            ValueError: when there are none.
        """
        if not scores:
            raise ValueError("there are no scores to average")
        columns = {field.name: np.stack([getattr(s, field.name) for s in scores]) for field in fields(cls)}
        means: dict[str, Any] = {name: values.mean(axis=0) for name, values in columns.items()}
        numbers: dict[str, Any] = {
            name: value if value.ndim else float(value) for name, value in means.items()
        }
        return cls(**numbers)

    def to_json(self) -> dict[str, Any]:
        """Return every single number, and the curves to six digits."""
        numbers: dict[str, Any] = {name: getattr(self, name) for name in MEASURES}
        curves = {name: getattr(self, name).round(6).tolist() for name in ("f_curve", "e_curve")}
        return numbers | curves


def score_map(
    prediction: UInt8[np.ndarray, "height width"], mask: Bool[np.ndarray, "height width"]
) -> Scores:
    """Score a map against a mask, with pysodmetrics.

    The map is first stretched to the whole range between its least and largest value.

    Args:
        prediction: 0–255.
        mask: where the object is.

    Raises:
        ValueError: when the sizes differ.

    Example:
        >>> mask = np.zeros((8, 8), dtype=bool)
        >>> mask[2:6, 2:6] = True
        >>> scores = score_map(mask.astype(np.uint8) * 255, mask)
        >>> scores.mae, round(scores.s_measure, 3), round(scores.max_f, 3)
        (0.0, 1.0, 1.0)
    """
    import py_sod_metrics as evaluators

    if prediction.shape != mask.shape:
        raise ValueError(f"a map of shape {prediction.shape} cannot be scored against a mask of {mask.shape}")
    handler = evaluators.FmeasureHandler(with_dynamic=True, with_adaptive=True, beta=BETA_SQUARED)
    parts: dict[str, Any] = {
        "mae": evaluators.MAE(),
        "s": evaluators.Smeasure(alpha=ALPHA),
        "e": evaluators.Emeasure(),
        "weighted": evaluators.WeightedFmeasure(beta=1),
        "weighted_03": evaluators.WeightedFmeasure(beta=BETA_SQUARED),
        "f": evaluators.FmeasureV2({"f": handler}),
    }
    truth = mask.astype(np.uint8) * 255
    # An empty mask, or a map without contrast, divides by zero inside.
    with np.errstate(divide="ignore", invalid="ignore"):
        for part in parts.values():
            part.step(pred=prediction, gt=truth)
        results = {name: part.get_results() for name, part in parts.items()}
    e, f = results["e"]["em"], results["f"]["f"]
    return Scores(
        mae=float(results["mae"]["mae"]),
        s_measure=float(results["s"]["sm"]),
        weighted_f=float(results["weighted"]["wfm"]),
        weighted_f_03=float(results["weighted_03"]["wfm"]),
        adaptive_f=float(f["adaptive"]),
        adaptive_e=float(e["adp"]),
        f_curve=cast(np.ndarray, f["dynamic"]),
        e_curve=cast(np.ndarray, e["curve"]),
    )
