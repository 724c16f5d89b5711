"""Strips computed in parts, one for each core."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from invertible_attention.attention.functional import attend
from invertible_attention.attention.functional import strips as module
from invertible_attention.attention.functional.form import Form

from .cases import derivatives, problem

FORMS = [
    Form("product", "exp", "column"),
    Form("product", "elu_plus_one", "row"),
    Form("product", "exp", "all"),
    Form("sum", "elu", "all"),
]


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch):
    """Pretend there are more cores than samples and heads; whether any strip was cut into parts."""
    used: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    in_parts = module._run_in_parts

    def spy(function, parts, *rest):
        used.append(parts)
        return in_parts(function, parts, *rest)

    monkeypatch.setattr(module, "_run_in_parts", spy)
    return used


@pytest.mark.usefixtures("small_strips")
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize(("batch", "heads"), [(1, 1), (1, 3), (2, 1)])
def test_strips_in_parts_match_reference(form: Form, batch: int, heads: int, cores: list[int]):
    tensors = problem(form, batch=batch, heads=heads, queries=13, keys=17)
    expected = derivatives(form, "reference", tensors, order=2)
    found = derivatives(form, "blocked", tensors, order=2)
    assert set(cores) in ({7 // (batch * heads)}, {7 // heads})
    for mine, truth in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, truth, rtol=1e-10, atol=1e-11)


@given(
    batch=st.integers(1, 2),
    heads=st.integers(1, 2),
    queries=st.integers(1, 20),
    keys=st.integers(1, 20),
    shared=st.booleans(),
    masked=st.booleans(),
    threads=st.integers(1, 9),
    seed=st.integers(0, 999),
)
@settings(deadline=None, max_examples=40)
def test_priors_and_masks_of_strips_in_parts(
    batch: int, heads: int, queries: int, keys: int, shared: bool, masked: bool, threads: int, seed: int
):
    form = Form("product", "exp", "column")
    if masked:
        keys = queries
    query, key, value = problem(form, batch=batch, heads=heads, queries=queries, keys=keys, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    shape = (queries, keys) if shared else (heads, queries, keys)
    prior = torch.randn(shape, generator=generator, dtype=torch.float64)
    prior.requires_grad_()
    mask = torch.rand(batch, queries, generator=generator) < 0.7 if masked else None
    results = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: threads)
        for name in ("reference", "blocked"):
            out = attend(
                query,
                key,
                value,
                combine="product",
                phi="exp",
                normalization="column",
                log_prior=prior,
                mask=mask,
                implementation=name,
            )
            results.append((out, *torch.autograd.grad(out.square().sum(), prior)))
    for mine, truth in zip(*results, strict=True):
        torch.testing.assert_close(mine, truth, rtol=1e-10, atol=1e-11)
