"""Every implementation of every form matches N×N attention: values, first and second derivatives."""

from __future__ import annotations

from unittest.mock import Mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from invertible_attention.attention.functional import fused, response_matrix, strips
from invertible_attention.attention.functional.form import Form

from .cases import FORMS, IDS, PAIRS, derivatives, problem, run

pytestmark = pytest.mark.usefixtures("small_strips")


def tolerance(form: Form, name: str) -> dict[str, float]:
    """Rounding, except for second derivatives of the one inexact expansion."""
    return (
        {"rtol": 1e-9, "atol": 1e-9}
        if (form.phi, name) == ("softplus", "sorted")
        else {"rtol": 1e-10, "atol": 1e-11}
    )


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_reference_is_the_definition(form: Form):
    query, key, value = problem(form)
    score = query @ key.mT if form.combine == "product" else query + key.mT
    weight = {
        "exp": score.exp(),
        "elu_plus_one": torch.where(score > 0, 1 + score, score.exp()),
        "softplus": (1 + score.exp()).log(),
        "elu": torch.where(score > 0, score, score.exp() - 1),
        "identity": score,
    }[form.phi]
    dim = {"column": (-2,), "row": (-1,), "all": (-2, -1), "count": None}[form.normalization]
    total = key.shape[-2] if dim is None else weight.sum(dim, keepdim=True)
    torch.testing.assert_close(response_matrix(query, key, form), weight / total, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(run(form, "reference", query, key, value), weight / total @ value)


@pytest.mark.parametrize(("form", "name"), PAIRS, ids=IDS)
def test_values_and_two_derivatives(form: Form, name: str):
    tensors = problem(form)
    expected = derivatives(form, "reference", tensors, order=2)
    found = derivatives(form, name, tensors, order=2)
    for mine, truth in zip(found, expected, strict=False):
        torch.testing.assert_close(mine, truth, **tolerance(form, name))


@pytest.mark.parametrize("form", [Form("product", "exp", "column"), Form("product", "exp", "row")], ids=str)
def test_portable_kernel_matches_reference(form: Form, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fused, "kernel_for", lambda device: fused.PortableKernel())
    tensors = problem(form)
    expected = derivatives(form, "reference", tensors, order=3)
    found = derivatives(form, "flash", tensors, order=3)
    assert len(found) == len(expected) == 10
    for mine, truth in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, truth, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_kernel_takes_two_passes_when_strips_have_few_rows(scale: float, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(strips, "_FEWEST_ROWS", 40)
    monkeypatch.setattr(
        fused.CpuKernel, "_in_two_passes", passes := Mock(wraps=fused.CpuKernel()._in_two_passes)
    )
    form = Form("product", "exp", "column")
    tensors = problem(form, queries=30, keys=30, scale=scale)
    expected = derivatives(form, "reference", tensors, order=2)
    for mine, truth in zip(derivatives(form, "flash", tensors, order=2), expected, strict=True):
        torch.testing.assert_close(mine, truth, rtol=1e-9, atol=1e-10)
    single = tuple(tensor.float() for tensor in tensors)
    torch.testing.assert_close(
        run(form, "flash", *single), run(form, "reference", *single), rtol=1e-4, atol=1e-4
    )
    assert passes.call_count == 2


@given(
    pair=st.sampled_from(PAIRS),
    batch=st.integers(1, 3),
    heads=st.integers(1, 3),
    queries=st.integers(1, 20),
    keys=st.integers(1, 20),
    dim=st.integers(1, 17),
    features=st.integers(1, 17),
    log_scale=st.floats(-3, 1),
    seed=st.integers(0, 999),
)
@settings(deadline=None, max_examples=60)
def test_random_shapes(
    pair: tuple[Form, str],
    batch: int,
    heads: int,
    queries: int,
    keys: int,
    dim: int,
    features: int,
    log_scale: float,
    seed: int,
):
    form, name = pair
    tensors = problem(
        form,
        batch=batch,
        heads=heads,
        queries=queries,
        keys=keys,
        dim=dim,
        features=features,
        scale=10**log_scale,
        seed=seed,
    )
    expected = derivatives(form, "reference", tensors, order=1)
    found = derivatives(form, name, tensors, order=1)
    for mine, truth in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, truth, rtol=1e-8, atol=1e-9 * (1 + float(truth.abs().max())))


@pytest.mark.parametrize(("form", "name"), PAIRS, ids=IDS)
def test_non_contiguous_input(form: Form, name: str):
    tensors = problem(form)
    strided = tuple(
        tensor.transpose(1, 2).contiguous().transpose(1, 2).mT.contiguous().mT for tensor in tensors
    )
    assert not any(tensor.is_contiguous() for tensor in strided if tensor.shape[-1] > 1)
    torch.testing.assert_close(run(form, name, *strided), run(form, name, *tensors), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(("form", "name"), PAIRS, ids=IDS)
def test_one_token(form: Form, name: str):
    query, key, value = problem(form, queries=1, keys=1)
    found = run(form, name, query, key, value)
    if form.normalization == "count":
        torch.testing.assert_close(found, run(form, "reference", query, key, value))
    else:
        torch.testing.assert_close(found, value)


@pytest.mark.parametrize(("form", "name"), PAIRS, ids=IDS)
def test_tied_scores(form: Form, name: str):
    """Equal tokens, scores of exactly zero among them, where φ's two branches meet."""
    query, key, value = problem(form, queries=24, keys=24)
    query, key = query.round(), key.round()
    if not form.positive and form.normalization != "count":
        query, key = query + 1, key + 1
    expected = derivatives(form, "reference", (query, key, value), order=2)
    found = derivatives(form, name, (query, key, value), order=2)
    for mine, truth in zip(found, expected, strict=False):
        # The expansion of softplus takes its second derivative from the left at zero, as do all.
        torch.testing.assert_close(mine, truth, **tolerance(form, name))
