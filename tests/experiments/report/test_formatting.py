"""Number format of reports: digits, spreads over repeats, missing and nonfinite values."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from invertible_attention.experiments.report.formatting import format_fixed, format_number, format_spread

SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")


@given(st.floats(1e-30, 1e30), st.integers(1, 6))
def test_numbers_round_trip_to_the_shown_digits(value: float, digits: int) -> None:
    text = format_number(value, digits)
    mantissa, _, power = text.partition(" × 10")
    back = float(mantissa) * 10.0 ** int(power.translate(SUPERSCRIPTS) or 0)
    assert back == pytest.approx(value, rel=0.51 * 10.0 ** (1 - digits))


@pytest.mark.parametrize(
    ("value", "text"), [(None, "?"), (math.nan, "?"), (math.inf, "∞"), (-math.inf, "−∞"), (0.0, "0")]
)
def test_nonfinite_values_have_their_own_symbols(value: float | None, text: str) -> None:
    assert format_number(value, missing="?") == text


def test_missing_values_are_a_dash() -> None:
    assert format_fixed([None, None], 2) == "–"
    assert format_spread([None, None]) == "–"
    assert format_spread([None], missing="∞") == "∞"
