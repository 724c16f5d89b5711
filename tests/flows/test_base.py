from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from invertible_attention.flows import DiagonalGaussian, Uniform


def test_gaussian_density_matches_torch():
    torch.manual_seed(0)
    base = DiagonalGaussian(3).double()
    with torch.no_grad():
        base.mean.normal_()
        base.log_std.normal_()
    z = torch.randn(5, 3, dtype=torch.float64)
    expected = torch.distributions.Normal(base.mean, base.log_std.exp()).log_prob(z).sum(1)
    torch.testing.assert_close(base.log_prob(z), expected)


def test_gaussian_samples_have_the_moments_and_the_temperature():
    torch.manual_seed(0)
    base = DiagonalGaussian(2).double()
    with torch.no_grad():
        base.mean.copy_(torch.tensor([1.0, -3.0]))
        base.log_std.copy_(torch.tensor([0.5, -1.0]))
    for temperature in (1.0, 0.3):
        draws = base.sample(40_000, temperature=temperature)
        std = temperature * base.log_std.exp()
        assert ((draws.mean(0) - base.mean).abs() < 4 * std / 200).all()
        torch.testing.assert_close(draws.std(0), std.detach(), rtol=0.02, atol=0)


def test_only_a_learned_gaussian_has_parameters():
    assert len(list(DiagonalGaussian(2).parameters())) == 2
    assert not list(DiagonalGaussian(2, learned=False).parameters())
    assert set(DiagonalGaussian(2, learned=False).state_dict()) == {"mean", "log_std"}


def test_uniform_density_and_samples():
    base = Uniform(2, -1.0, 3.0)
    z = torch.tensor([[0.0, 0.0], [3.5, 0.0], [0.0, -1.1]])
    assert base.log_prob(z).tolist() == [pytest.approx(-2 * math.log(4)), -math.inf, -math.inf]
    draws = base.sample(10_000)
    assert draws.min() >= -1
    assert draws.max() <= 3
    assert abs(draws.mean().item() - 1) < 4 * (4 / math.sqrt(12)) / math.sqrt(20_000)
    assert base.sample(100, temperature=0.5).abs().max() <= 2


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: DiagonalGaussian(0), "dim must be at least 1, got 0"),
        (lambda: DiagonalGaussian(3).log_prob(torch.zeros(2, 4)), r"expected shape \(B, 3\), got \(2, 4\)"),
        (lambda: Uniform(1, 2.0, 1.0), r"got \[2.0, 1.0\]"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("make", [lambda: DiagonalGaussian(500), lambda: Uniform(500, -0.7, 0.9)])
def test_densities_in_half_precision_are_computed_in_single(make, half, masked):
    base = make()
    for parameter in base.parameters():
        nn.init.normal_(parameter)
    base.to(half)
    exact = copy.deepcopy(base).double()
    z = exact.sample(4).to(half)
    given = {"mask": torch.rand(4, 500) < 0.5} if masked else {}
    value = base.log_prob(z, **given)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), exact.log_prob(z.double(), **given), rtol=1e-5, atol=0)
    assert base.sample(3).dtype == half


@pytest.mark.parametrize("base", [DiagonalGaussian(2), Uniform(2)], ids=lambda base: type(base).__name__)
def test_complex_input_is_refused(base):
    with pytest.raises(ValueError, match="expected real numbers, got torch.complex64"):
        base.log_prob(torch.zeros(1, 2, dtype=torch.complex64))
