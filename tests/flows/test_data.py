from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from invertible_attention.flows import ActNorm, Dequantize, Logit


@given(levels=st.sampled_from([2, 17, 32, 100, 256, 65536]), seed=st.integers(0, 2**16))
@settings(max_examples=40, deadline=None)
def test_dequantization_inverts_exactly(levels, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, levels, (4, 2000), generator=generator)
    flow = Dequantize(levels, generator=generator)
    for dtype in (torch.int64, torch.float32, torch.float64):
        z = flow(x.to(dtype))
        assert 0 <= z.min() <= z.max() < 1
        assert torch.equal(flow.inverse(z).long(), x)


@pytest.mark.parametrize("levels", [17, 256])
@pytest.mark.parametrize("end", [0.0, 1 - 2**-24])
def test_noise_never_reaches_the_next_integer(levels, end, monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.full(tuple(shape), end))
    x = torch.arange(levels).view(1, -1)
    flow = Dequantize(levels)
    assert torch.equal(flow.inverse(flow(x)).long(), x)


def test_dequantization_noise_is_uniform():
    torch.manual_seed(0)
    noise = 256 * Dequantize()(torch.zeros(1, 100_000)).flatten()
    quantiles = torch.linspace(0.1, 0.9, 9)
    # the standard error of a quantile q of the uniform distribution is sqrt(q (1 - q) / n)
    error = (quantiles * (1 - quantiles) / len(noise)).sqrt()
    assert ((noise.quantile(quantiles) - quantiles).abs() < 4 * error).all()


def test_dequantization_logdet_and_types():
    z, logdet = Dequantize(32).forward_and_logdet(torch.zeros(2, 3, 4, dtype=torch.uint8))
    assert z.dtype == logdet.dtype == torch.float32
    torch.testing.assert_close(logdet, torch.full((2,), -12 * math.log(32)))
    back, inverse_logdet = Dequantize(32).inverse_and_logdet(torch.tensor([[-0.1, 0.5, 1.1]]))
    assert back.tolist() == [[0.0, 16.0, 31.0]]
    torch.testing.assert_close(inverse_logdet, torch.full((1,), 3 * math.log(32)))
    assert Dequantize()(torch.zeros(2, 3, dtype=torch.bfloat16)).dtype == torch.float32


@pytest.mark.parametrize("alpha", [0.0, 1e-6, 0.05, 0.3])
def test_logit_logdet_is_finite_at_the_boundary(alpha):
    x = torch.tensor([[1e-6, 0.3, 0.5, 1 - 1e-6]], dtype=torch.float64)
    z, logdet = Logit(alpha).forward_and_logdet(x)
    slope = torch.autograd.functional.jacobian(Logit(alpha), x).reshape(4, 4).diagonal()
    torch.testing.assert_close(logdet, slope.log().sum()[None])
    torch.testing.assert_close(Logit(alpha).inverse(z), x)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Dequantize(1), "levels must be at least 2, got 1"),
        (lambda: Logit(0.5), r"alpha must lie in \[0, 0.5\), got 0.5"),
        (lambda: Logit(-0.1), "got -0.1"),
    ],
)
def test_bad_arguments(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@given(value=st.floats(-300, 300).filter(lambda value: not (value.is_integer() and 0 <= value < 256)))
@settings(max_examples=25, deadline=None)
def test_out_of_range_values_are_refused(value, dtype):
    x = torch.tensor([[3.0, value]], dtype=dtype)
    if float(x[0, 1]).is_integer() and 0 <= x[0, 1] < 256:  # rounded to a valid value
        assert Dequantize()(x).isfinite().all()
    else:
        with pytest.raises(ValueError, match=r"Dequantize\(256\) takes integers from 0 to 255, got "):
            Dequantize()(x)


@pytest.mark.parametrize(
    "x",
    [
        torch.rand(2, 3, 4, 4),
        torch.full((1, 2), 32, dtype=torch.uint8),
        torch.tensor([[-1]]),
        torch.tensor([[math.nan]]),
    ],
)
def test_pixels_on_another_scale_are_refused(x):
    with pytest.raises(ValueError, match=r"integers from 0 to 31, got .*\.round\(\)"):
        Dequantize(32)(x)


def test_padding_values_are_ignored():
    x = torch.tensor([[[7.0, 0.5, math.nan]]])
    z = Dequantize()(x, mask=torch.tensor([[True, False, False]]))
    assert 7 <= 256 * z[0, 0, 0] < 8


def test_out_of_range_values_become_nan_under_transforms():
    z = torch.func.vmap(Dequantize(), randomness="different")(torch.tensor([[[2.0, 0.5]]]))
    assert z.isnan().tolist() == [[[False, True]]]


@pytest.mark.parametrize("flow", [ActNorm(1), Dequantize(), Logit()], ids=lambda flow: type(flow).__name__)
@pytest.mark.parametrize("method", ["forward", "inverse", "forward_and_logdet", "inverse_and_logdet"])
def test_complex_numbers_are_refused(flow, method):
    with pytest.raises(ValueError, match="expected real numbers, got torch.complex64"):
        getattr(flow, method)(torch.tensor([[complex(math.inf, 0)]]))
