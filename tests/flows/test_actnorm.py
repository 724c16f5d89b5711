from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from invertible_attention.flows import ActNorm


@given(
    shape=st.sampled_from([(4,), (3, 5), (2, 3, 4), (1, 2, 2, 2)]),
    loc=st.floats(-100, 100),
    scale=st.floats(0.1, 100),
)
@settings(max_examples=30, deadline=None)
def test_first_batch_is_standardized(shape, loc, scale):
    generator = torch.Generator().manual_seed(0)
    x = loc + scale * torch.randn(64, *shape, dtype=torch.float64, generator=generator)
    z = ActNorm(shape[0]).double()(x).transpose(0, 1).flatten(1)
    torch.testing.assert_close(z.mean(1), torch.zeros_like(z[:, 0]), atol=1e-9, rtol=0)
    torch.testing.assert_close(z.var(1, correction=0), torch.ones_like(z[:, 0]), atol=2e-3, rtol=0)


def test_later_batches_do_not_change_the_statistics():
    layer = ActNorm(2)
    layer(torch.randn(8, 2))
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    layer(100 * torch.randn(8, 2))
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())
    assert bool(layer.initialized)


def test_non_finite_samples_are_skipped():
    torch.manual_seed(0)
    x = torch.randn(16, 2, 3)
    spoiled = torch.cat([x, torch.full((1, 2, 3), torch.nan), torch.full((1, 2, 3), torch.inf)])
    clean, robust = ActNorm(2), ActNorm(2)
    clean(x)
    robust(spoiled)
    torch.testing.assert_close(robust.state_dict(), clean.state_dict())
    with pytest.raises(ValueError, match="no sample of the first batch is finite"):
        ActNorm(2)(torch.full((3, 2), torch.nan))


def test_restored_layer_is_not_reinitialized():
    first, second = ActNorm(2), ActNorm(2)
    first(5 + torch.randn(8, 2))
    second.load_state_dict(first.state_dict())
    x = torch.randn(4, 2)
    torch.testing.assert_close(second(x), first(x))
    # conversely, a state from before the first batch is initialized by the next one
    first.load_state_dict(ActNorm(2).state_dict())
    assert first(7 + torch.randn(8, 2)).mean().abs() < 1e-5


def test_functional_transforms_need_an_initialized_layer():
    layer = ActNorm(2)
    x = torch.randn(4, 2)
    with pytest.raises(RuntimeError, match=r"torch\.func"):
        torch.func.jacrev(layer)(x)
    layer.initialize(x)
    assert torch.func.vmap(torch.func.jacrev(lambda row: layer(row[None])[0]))(x).shape == (4, 2, 2)


def test_identity_before_the_first_batch():
    x = torch.randn(3, 2)
    assert torch.equal(ActNorm(2).inverse(x), x)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ActNorm(0), "channels must be at least 1, got 0"),
        (lambda: ActNorm(3)(torch.zeros(2, 4)), r"expected \(B, 3, ...\), got shape \(2, 4\)"),
        (lambda: ActNorm(3).inverse(torch.zeros(3)), r"got shape \(3,\)"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=words):
        call()
