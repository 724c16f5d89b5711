from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from invertible_attention.flows import ActNorm, Flatten, Logit, Sequential, Split, Squeeze


@given(
    factor=st.integers(1, 3),
    channels=st.integers(1, 3),
    spatial=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    batch=st.integers(1, 3),
)
@settings(max_examples=40, deadline=None)
def test_squeeze_is_a_permutation_with_the_documented_order(factor, channels, spatial, batch):
    shape = (batch, channels, *(size * factor for size in spatial))
    x = torch.arange(math.prod(shape)).view(shape)
    squeeze = Squeeze(factor)
    z = squeeze(x)
    assert z.shape == (batch, channels * factor ** len(spatial), *spatial)
    assert torch.equal(squeeze.inverse(z), x)
    # channel offset · C + c holds channel c at that offset, offsets in row-major order
    for offset in range(factor ** len(spatial)):
        axes = []
        rest = offset
        for _ in spatial:
            axes.append(rest % factor)
            rest //= factor
        block = (slice(None), slice(None), *(slice(start, None, factor) for start in reversed(axes)))
        assert torch.equal(z[:, offset * channels : (offset + 1) * channels], x[block])


def test_squeeze_of_an_image_is_pixel_unshuffle_with_offsets_first():
    x = torch.randn(2, 3, 8, 4)
    unshuffled = torch.pixel_unshuffle(x, 2).unflatten(1, (3, 4)).transpose(1, 2).flatten(1, 2)
    assert torch.equal(Squeeze(2)(x), unshuffled)


def test_split_keeps_the_first_half_and_appends_the_rest():
    x = torch.arange(12.0).view(1, 3, 2, 2)
    split = Split((3, 2, 2), Sequential(ActNorm(1), Flatten((1, 2, 2))))
    split.transform[0].initialize(10 + torch.randn(64, 1, 2, 2))
    z = split(x)
    assert torch.equal(z[:, :4], split.transform(x[:, :1]))
    assert torch.equal(z[:, 4:], x[:, 1:].flatten(1))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Squeeze(0), "factor must be at least 1, got 0"),
        (lambda: Squeeze(2)(torch.zeros(1, 1, 3, 4)), r"divisible by 2, got shape \(1, 1, 3, 4\)"),
        (lambda: Squeeze(2).inverse(torch.zeros(1, 3, 4, 4)), r"divisible by 4, got shape \(1, 3, 4, 4\)"),
        (lambda: Squeeze(2)(torch.zeros(1, 4)), r"got shape \(1, 4\)"),
        (lambda: Flatten((2, 3))(torch.zeros(1, 3, 2)), r"expected shape \(B, 2, 3\), got \(1, 3, 2\)"),
        (lambda: Flatten((2, 3)).inverse(torch.zeros(1, 5)), r"expected shape \(B, 6\), got \(1, 5\)"),
        (lambda: Split((1, 2), Flatten((1, 2))), "nothing to factor out of 1 channels"),
        (lambda: Split((2, 2), Logit())(torch.full((1, 2, 2), 0.5)), r"must return \(B, D\)"),
        (lambda: Split((2, 2), Flatten((1, 2)))(torch.zeros(1, 2, 3)), r"got \(1, 2, 3\)"),
        (lambda: Sequential(), "at least one bijection"),
        (lambda: Sequential(torch.nn.ReLU()), "expected a Bijection, got ReLU"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_sequential_behaves_as_a_sequence():
    parts = [Squeeze(2), ActNorm(4)]
    flow = Sequential(*parts)
    assert list(flow) == parts
    assert len(flow) == 2
    assert flow[1] is parts[1]
