"""Rounding errors: float32 against float64, half precision, extreme scores, and NaN that stays in its sample."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from invertible_attention.attention.functional.form import Form

from .cases import FORMS, IDS, PAIRS, applicable, derivatives, problem, relative_error, run

POSITIVE = [(form, name) for form, name in PAIRS if form.positive and form.normalization != "count"]
POSITIVE_IDS = [f"{form.combine}-{form.phi}-{form.normalization}-{name}" for form, name in POSITIVE]

# Below this an error is a few roundings of the result itself, whichever way it was computed.
ROUNDINGS = 3e-7


@pytest.mark.parametrize("form", [form for form in FORMS if applicable(form)], ids=str)
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0, 1000.0])
def test_float32_is_within_twice_the_reference(form: Form, scale: float):
    if form.phi == "exp" and form.normalization == "count" and scale > 1:
        pytest.skip("e^1000 is not a number, and nothing divides it")
    tensors = problem(form, queries=150, keys=150, scale=scale, dtype=torch.float32)
    exact = derivatives(form, "reference", tuple(tensor.double() for tensor in tensors), order=1)
    allowed = [
        relative_error(*pair) for pair in zip(derivatives(form, "reference", tensors, 1), exact, strict=True)
    ]
    for name in applicable(form):
        if name == "flex":
            continue  # unfused on a CPU: the measurement would not reflect what runs
        found = [
            relative_error(*pair) for pair in zip(derivatives(form, name, tensors, 1), exact, strict=True)
        ]
        for error, limit, truth in zip(found, allowed, exact, strict=True):
            if truth.norm() > 1e-6:  # a gradient that is zero has no relative error
                assert error <= 2 * max(limit, ROUNDINGS / 2), (name, error, limit)


@pytest.mark.parametrize(("form", "name"), POSITIVE, ids=POSITIVE_IDS)
@pytest.mark.parametrize("scale", [1e3, 1e4])
@pytest.mark.parametrize("offset", [0.0, -3.0, 3.0])
def test_extreme_scores(form: Form, name: str, scale: float, offset: float):
    query, key, value = problem(form, queries=40, keys=40, scale=scale)
    if form.combine == "sum":
        query = query + offset * scale
    expected = derivatives(form, "reference", (query, key, value), order=1)
    found = derivatives(form, name, (query, key, value), order=1)
    assert found[0].abs().max() > 1e-3 or form.normalization == "all"
    # A score of 1e4 is itself rounded by 1e-12, and its weight with it.
    for mine, truth in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, truth, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("form", "name"), PAIRS, ids=IDS)
def test_half_precision_rounds_once(form: Form, name: str, dtype: torch.dtype):
    tensors = problem(form, queries=33, keys=33, scale=3.0, dtype=dtype)
    found = run(form, name, *tensors)
    assert found.dtype == dtype
    exact = run(form, "reference", *(tensor.double() for tensor in tensors))
    unit = torch.finfo(dtype).eps / 2
    assert ((found.double() - exact).abs() <= unit * exact.abs() + 1e-5 * exact.abs().max()).all()


@pytest.mark.parametrize("name", ["reference", "blocked", "flash"])
def test_autocast_changes_nothing(name: str):
    form = Form("product", "exp", "column")
    tensors = problem(form, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = run(form, name, *tensors)
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, run(form, name, *tensors), rtol=0, atol=0)


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize("name", ["reference", "blocked", "flash", "sorted", "closed_form", "flex"])
@pytest.mark.usefixtures("small_strips")
def test_nan_stays_in_its_sample(name: str, position: int, poison: float):
    form = {
        "sorted": Form("sum", "elu_plus_one", "column"),
        "closed_form": Form("sum", "exp", "column"),
    }.get(name, Form("product", "exp", "column"))
    tensors = problem(form, batch=3)
    expected = derivatives(form, name, tensors, order=1)
    tensors[position][1, 0, 3] = poison
    found = derivatives(form, name, tensors, order=1)
    assert not found[0][1].isfinite().all()
    for mine, clean in zip(found, expected, strict=True):
        torch.testing.assert_close(mine[[0, 2]], clean[[0, 2]], rtol=0, atol=0)


@given(pair=st.sampled_from(POSITIVE), seed=st.integers(0, 999), log_scale=st.floats(-2, 3))
@settings(deadline=None, max_examples=40)
def test_weights_sum_to_one(pair: tuple[Form, str], seed: int, log_scale: float):
    """With equal values the output shows the sum of the weights."""
    form, name = pair
    query, key, value = problem(form, scale=10**log_scale, seed=seed)
    value = torch.ones_like(value)
    found = run(form, name, query, key, value)
    if form.normalization == "row":
        torch.testing.assert_close(found, torch.ones_like(found), rtol=1e-11, atol=0)
    else:
        expected = float(key.shape[-2]) if form.normalization == "column" else 1.0
        torch.testing.assert_close(
            found.sum(-2), torch.full_like(found[..., 0, :], expected), rtol=1e-11, atol=0
        )
