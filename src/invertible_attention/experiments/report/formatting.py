"""Numbers as readers want them: few digits, deviations, powers of ten."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

__all__ = [
    "format_error",
    "format_fixed",
    "format_number",
    "format_percent",
    "format_ratio",
    "format_spread",
    "format_value",
    "mean_and_deviation",
    "mean_and_error",
]

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def mean_and_deviation(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Return mean and sample standard deviation; ``None`` where a value is missing or there is only one.

    Example:
        >>> mean_and_deviation([1.0, 2.0, 3.0])
        (2.0, 1.0)
        >>> mean_and_deviation([1.0, None])
        (None, None)
    """
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None, None
    return statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and its standard error, ``None`` for a single value.

    Example:
        >>> mean_and_error([1.0, 2.0, 3.0])
        (2.0, 0.5773502691896258)
    """
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None
    return mean, statistics.stdev(values) / math.sqrt(len(values))


def format_number(value: float | None, digits: int = 3, *, missing: str = "–") -> str:
    """Return ``value`` with a fixed number of significant digits, as a power of ten where it is far from 1.

    Example:
        >>> format_number(84.8723), format_number(0.99871), format_number(1.55e-6), format_number(123456.0)
        ('84.9', '0.999', '1.55 × 10⁻⁶', '1.23 × 10⁵')
        >>> format_number(None), format_number(100.0, 4), format_number(0.0)
        ('–', '100', '0')
    """
    if value is None or math.isnan(value):
        return missing
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    power = int(exponent)
    if -4 < power < digits + 1:
        text = f"{value:.{max(0, digits - 1 - power)}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    return f"{mantissa} × 10{str(power).translate(SUPERSCRIPTS)}"


def format_spread(values: Sequence[float | None], digits: int = 3, *, missing: str = "–") -> str:
    """Return mean ± standard deviation of repeats; the mean alone for a single one.

    Example:
        >>> format_spread([98.3, 98.9, 97.7]), format_spread([5.0]), format_spread([1e-9, 3e-9], 2)
        ('98.3 ± 0.6', '5', '2.0 × 10⁻⁹ ± 1.4 × 10⁻⁹')
    """
    mean, deviation = mean_and_deviation(values)
    text = format_number(mean, digits, missing=missing)
    return text if deviation is None else f"{text} ± {format_number(deviation, 2)}"


def format_fixed(values: Sequence[float | None], decimals: int) -> str:
    """Return mean ± standard deviation with a fixed number of decimals.

    Example:
        >>> format_fixed([98.25, 98.75], 1), format_fixed([0.98764], 3)
        ('98.5 ± 0.4', '0.988')
    """
    mean, deviation = mean_and_deviation(values)
    if mean is None:
        return "–"
    text = f"{mean:.{decimals}f}"
    return text if deviation is None else f"{text} ± {deviation:.{decimals}f}"


def format_percent(shares: Sequence[float | None], decimals: int = 1) -> str:
    """Return mean ± standard deviation of shares, in percent.

    Example:
        >>> format_percent([0.98, 0.99]), format_percent([None])
        ('98.5 ± 0.7', '–')
    """
    return format_fixed([None if share is None else 100 * share for share in shares], decimals)


def format_error(
    mean: float | None, error: float | None, *, sign: bool = False, missing: str = "not finite"
) -> str:
    """Return a mean ± its standard error with four decimals, as bits per dimension are given.

    Example:
        >>> format_error(3.25, 0.01), format_error(-0.5, None, sign=True), format_error(None, None)
        ('3.2500 ± 0.0100', '-0.5000', 'not finite')
    """
    if mean is None:
        return missing
    text = f"{mean:+.4f}" if sign else f"{mean:.4f}"
    return text if error is None else f"{text} ± {error:.4f}"


def format_ratio(ratio: float | None, decimals: int = 6) -> str:
    """Return the ratio of a constant to its bound, rounded away from 1, so that neither side is taken for the other.

    Example:
        >>> format_ratio(0.9999999), format_ratio(1.0000001), format_ratio(1.0), format_ratio(None)
        ('0.999999', '1.000001', '1.000000', '∞')
    """
    if ratio is None:
        return "∞"
    unit = 10**decimals
    rounded = math.floor(ratio * unit) if ratio <= 1 else math.ceil(ratio * unit)
    return f"{rounded / unit:.{decimals}f}"


def format_value(value: Any) -> str:
    """Return a setting in words.

    Example:
        >>> [format_value(value) for value in (None, True, 0.003, [1, 2], "column")]
        ['–', 'yes', '0.003', '1, 2', 'column']
    """
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(format_value, value)) or "none"
    return f"{value:,}" if isinstance(value, int) else str(value)
