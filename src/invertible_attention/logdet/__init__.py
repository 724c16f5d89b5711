"""Log-determinants of ``x + g(x)``: exact, truncated, unbiased."""

from __future__ import annotations

from torch.serialization import add_safe_globals

from invertible_attention.logdet.base import LogDetEstimator
from invertible_attention.logdet.certified import Series
from invertible_attention.logdet.exact import Exact
from invertible_attention.logdet.power_series import PowerSeries
from invertible_attention.logdet.roulette import RussianRoulette

__all__ = ["Exact", "LogDetEstimator", "PowerSeries", "RussianRoulette", "Series"]

# A checkpoint may contain an estimator.
add_safe_globals([Exact, PowerSeries, RussianRoulette, Series])
