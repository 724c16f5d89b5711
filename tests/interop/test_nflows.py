from __future__ import annotations

import pytest
import torch

import invertible_attention as ia
from invertible_attention.interop import from_nflows, to_nflows

from .conftest import GAUSSIAN_NATS, attention, check_bijection

pytest.importorskip("nflows", reason="needs nflows: pip install 'invertible-attention[interop]'")
from nflows import transforms
from nflows.distributions import StandardNormal
from nflows.flows import Flow


def autoregressive(seed: int, context_features: int | None = None) -> transforms.Transform:
    torch.manual_seed(seed)
    return transforms.MaskedAffineAutoregressiveTransform(2, 16, context_features=context_features)


def test_nflows_round_trip():
    # What nflows asks of every transform in its tests: the composition of inverse and transform.
    for arguments in ({}, {"response": "gaussian"}, {"response": "concatenation", "normalization": "row"}):
        transform = to_nflows(attention(**arguments), view=(1, 2)).double()
        identity = transforms.CompositeTransform([transforms.InverseTransform(transform), transform])
        x = torch.randn(10, 2, dtype=torch.float64)
        outputs, logabsdet = identity(x)
        torch.testing.assert_close(outputs, x, atol=1e-9, rtol=0)
        torch.testing.assert_close(logabsdet, torch.zeros(10, dtype=torch.float64), atol=1e-9, rtol=0)


def test_log_probabilities_agree_both_ways(moons):
    layer, first, second = attention(), autoregressive(1), autoregressive(2)
    theirs = Flow(
        transforms.CompositeTransform([first, to_nflows(layer, view=(1, 2)), second]), StandardNormal([2])
    )
    ours = ia.flows.Flow(
        ia.flows.Sequential(
            from_nflows(first), ia.interop.FlattenedBijection(layer, (1, 2)), from_nflows(second)
        ),
        ia.flows.DiagonalGaussian(2, learned=False),
    )
    x = moons(200)
    torch.testing.assert_close(theirs.log_prob(x), ours.log_prob(x), atol=1e-5, rtol=0)
    samples, log_prob = theirs.sample_and_log_prob(100)
    torch.testing.assert_close(log_prob, ours.log_prob(samples), atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:torch.triangular_solve is deprecated")
def test_its_transforms_are_bijections():
    x = torch.randn(4, 2, dtype=torch.float64)
    spline = transforms.MaskedPiecewiseRationalQuadraticAutoregressiveTransform(2, 16, tails="linear")
    for transform in (autoregressive(3), transforms.LULinear(2), spline, transforms.RandomPermutation(2)):
        check_bijection(from_nflows(transform.double()), x)
    image = transforms.OneByOneConvolution(3).double()
    check_bijection(from_nflows(image), torch.randn(2, 3, 2, 2, dtype=torch.float64))


def test_nflows_context_reaches_the_transform():
    x, context = torch.randn(4, 2, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    conditional = from_nflows(autoregressive(3, context_features=3).double(), uses_context=True)
    check_bijection(conditional, x, context)
    assert not torch.allclose(conditional(x, context=context), conditional(x, context=context.flip(0)))
    unconditional = from_nflows(autoregressive(3).double())
    check_bijection(unconditional, x)
    with pytest.raises(ValueError, match="takes no context"):
        unconditional(x, context=context)


@pytest.mark.slow
def test_training_loop(moons):
    parts = []
    for seed in range(3):
        parts += [transforms.ReversePermutation(2), autoregressive(seed)]
    parts.insert(3, to_nflows(attention(logdet=ia.RussianRoulette()), view=(1, 2)))
    flow = Flow(transforms.CompositeTransform(parts), StandardNormal([2]))
    optimizer = torch.optim.Adam(flow.parameters(), lr=5e-3)
    for _ in range(150):
        optimizer.zero_grad()
        loss = -flow.log_prob(inputs=moons(256)).mean()
        assert torch.isfinite(loss)
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        assert -flow.eval().log_prob(moons(2000)).mean() < GAUSSIAN_NATS - 0.3
        samples = flow.sample(500)
        noise = flow.transform_to_noise(samples)
        torch.testing.assert_close(flow._transform.inverse(noise)[0], samples, atol=1e-4, rtol=1e-4)
