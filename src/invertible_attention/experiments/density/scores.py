"""How bits per dimension are written: with errors, and in brackets where they are no likelihood."""

from __future__ import annotations

import math
from typing import Any

from ..report import format_error, format_number
from .comparison import is_likelihood
from .configuration import RESIDUAL

__all__ = ["BRACKETS", "bits", "bracketed", "determinants", "mean_bits", "round_trip", "spread"]

BRACKETS = (
    "In brackets: estimated where the spectral radius reaches 1, so that the series does not converge and the figure "
    "is no likelihood."
)


def bits(score: dict[str, Any]) -> str:
    """Return the bits per dimension of one evaluation, with the error of its draws."""
    if score["bits_per_dim"] is None:
        return f"not finite on {score['not_finite']} values"
    return bracketed(format_error(score["bits_per_dim"], score["standard_error"]), score)


def mean_bits(row: dict[str, Any]) -> str:
    """Return the mean bits per dimension of a row, with its standard error."""
    return bracketed(spread(row["bits_per_dim"]), row)


def bracketed(text: str, score: dict[str, Any]) -> str:
    """Return a figure in brackets where it is no likelihood."""
    return text if is_likelihood(score) else f"[{text}]"


def determinants(score: dict[str, Any], model: str) -> str:
    """Return how log-determinants were computed."""
    if model not in RESIDUAL:
        return "the model’s"
    if score["exact"]:
        return "exact"
    return "unbiased" if is_likelihood(score) else "diverge"


def round_trip(samples: dict[str, Any]) -> str:
    """Return by how many levels samples change on the way to their latents and back."""
    error = samples.get("round_trip_error", math.nan)
    return format_number(math.inf if error is None else error, 2)


def spread(summary: dict[str, Any], *, sign: bool = False) -> str:
    """Return mean ± standard error, and how many values were not finite."""
    text = format_error(summary["mean"], summary["standard_error"], sign=sign, missing="–")
    missing = sum(value is None for value in summary["values"])
    return f"{text} ({missing} not finite)" if missing and summary["mean"] is not None else text
