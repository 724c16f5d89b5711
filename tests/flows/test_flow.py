from __future__ import annotations

import copy
import math
from functools import partial

import pytest
import torch

from invertible_attention.attention.layer import InvertibleAttention
from invertible_attention.flows import (
    ActNorm,
    Dequantize,
    DiagonalGaussian,
    Flatten,
    Flow,
    InvertibleResNet,
    LipschitzLinearBranch,
    Logit,
    Residual,
    Sequential,
    Uniform,
    i_resnet,
    residual_flow,
)
from invertible_attention.logdet import Exact, RussianRoulette


def test_uniform_integers_have_log2_levels_bits_per_dimension():
    for levels in (17, 256):
        flow = Flow(Sequential(Dequantize(levels), Flatten((3, 2, 2))), Uniform(12))
        x = torch.randint(0, levels, (5, 3, 2, 2))
        torch.testing.assert_close(flow.bits_per_dim(x), torch.full((5,), math.log2(levels)))


def test_gaussian_has_its_differential_entropy():
    torch.manual_seed(0)
    transform = ActNorm(4)
    flow = Flow(transform, DiagonalGaussian(4)).double()
    transform(torch.randn(4, 4, dtype=torch.float64))
    with torch.no_grad():  # the map x = 3 z, so that x is N(0, 9)
        transform.log_scale.fill_(-math.log(3))
        transform.shift.zero_()
    bits = flow.bits_per_dim(3 * torch.randn(20_000, 4, dtype=torch.float64))
    expected = 0.5 * math.log2(2 * math.pi * math.e * 9)
    assert abs(bits.mean().item() - expected) < 4 * bits.std().item() / len(bits) ** 0.5


def test_dequantized_gaussian_has_nearly_the_entropy_of_the_integers():
    """For a standard deviation of 20 levels the bound of dequantization is tight, and the entropy known."""
    torch.manual_seed(0)
    x = (128 + 20 * torch.randn(4000, 8, dtype=torch.float64)).round().clamp(0, 255)
    flow = Flow(Sequential(Dequantize(256), ActNorm(8)), DiagonalGaussian(8)).double()
    bits = flow.bits_per_dim(x)
    error = bits.std().item() / len(bits) ** 0.5
    assert abs(bits.mean().item() - 0.5 * math.log2(2 * math.pi * math.e * 400)) < 4 * error + 2e-3


def test_logit_and_affine_leave_the_density_normalized():
    flow = Flow(Sequential(Logit(0.0), ActNorm(1)), DiagonalGaussian(1)).double()
    flow.transform(torch.rand(64, 1, dtype=torch.float64))
    grid = (torch.arange(100_000, dtype=torch.float64) + 0.5)[:, None] / 100_000
    assert flow.log_prob(grid).exp().mean().item() == pytest.approx(1, abs=1e-6)


def toy_flow():
    """Four residual blocks on the plane, with weights far from their initial values."""
    torch.manual_seed(0)
    parts = []
    for _ in range(4):
        parts += [ActNorm(2), Residual(LipschitzLinearBranch(2, 16), logdet=Exact())]
    flow = Flow(Sequential(*parts), DiagonalGaussian(2)).double()
    angle = 2 * math.pi * torch.rand(256, 1, dtype=torch.float64)
    ring = torch.cat([angle.cos(), angle.sin()], 1) + 0.1 * torch.randn(256, 2, dtype=torch.float64)
    optimizer = torch.optim.Adam(flow.parameters(), lr=2e-2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = -flow.log_prob(ring).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return flow, losses


def test_density_of_a_trained_toy_integrates_to_one():
    flow, losses = toy_flow()
    assert losses[-1] < losses[0] - 0.3
    axis = torch.linspace(-6, 6, 241, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        mass = flow.log_prob(grid).exp().sum() * (axis[1] - axis[0]) ** 2
    assert mass.item() == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("make", [i_resnet, residual_flow])
def test_samples_map_back_to_their_latents(make):
    torch.manual_seed(0)
    flow = make((1, 8, 8), blocks=(1, 1), hidden_channels=8, attention=InvertibleAttention).double()
    flow.initialize(torch.randint(0, 256, (32, 1, 8, 8)).double())
    # past the dequantization, whose inverse rounds
    _, *continuous = flow.transform
    z = flow.base.sample(4)
    x = Sequential(*continuous).inverse(z)
    torch.testing.assert_close(Sequential(*continuous)(x), z, atol=1e-8, rtol=0)
    samples = flow.sample(4, temperature=0.5)
    assert samples.shape == (4, 1, 8, 8)
    assert torch.equal(samples, samples.round().clamp(0, 255))


def test_estimated_density_is_close_to_the_exact_one():
    torch.manual_seed(0)
    make = partial(i_resnet, (1, 4, 4), levels=17, blocks=(2, 1), hidden_channels=8)
    estimator = RussianRoulette(exact_dimensions=0)
    flow = make(attention=partial(InvertibleAttention, logdet=estimator), logdet=estimator).double().eval()
    exact = make(attention=partial(InvertibleAttention, logdet=Exact()), logdet=Exact()).double().eval()
    x = torch.randint(0, 17, (8, 1, 4, 4)).double()
    flow.initialize(x)
    exact.load_state_dict(flow.state_dict())
    draws = []
    with torch.no_grad():
        for seed in range(25):
            torch.manual_seed(seed)  # the noise is drawn first, so both see the same image
            estimate = flow.bits_per_dim(x)
            torch.manual_seed(seed)
            draws.append((estimate - exact.bits_per_dim(x)).mean())
    difference = torch.stack(draws)
    error = difference.std() / len(draws) ** 0.5
    assert error < 0.08
    assert difference.mean().abs() < 4 * error


def test_calling_a_flow_gives_the_log_density():
    flow = Flow(ActNorm(2), DiagonalGaussian(2))
    x = torch.randn(5, 2)
    assert torch.equal(flow(x), flow.log_prob(x))


def test_autocast_keeps_the_density_in_single_precision():
    torch.manual_seed(0)
    flow = i_resnet((1, 8, 8), blocks=(1, 1), hidden_channels=8, attention=InvertibleAttention)
    x = torch.randint(0, 256, (8, 1, 8, 8))
    flow.initialize(x)
    torch.manual_seed(1)
    expected = flow.bits_per_dim(x)
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = flow.bits_per_dim(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


# Dynamo itself looks at .grad of tensors that are not leaves.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_compiled_flow_gives_the_same_density_and_gradient():
    torch.manual_seed(0)
    flow = Flow(Sequential(ActNorm(2), Residual(LipschitzLinearBranch(2, 8))), DiagonalGaussian(2))
    x = torch.randn(6, 2)
    flow.initialize(x)
    results = []
    for function in (flow, torch.compile(flow, backend="eager")):
        torch.manual_seed(1)
        density = function(x)
        results.append((density, *torch.autograd.grad(density.sum(), list(flow.parameters()))))
    torch.testing.assert_close(*results)


def test_functional_gradient_of_the_density():
    torch.manual_seed(0)
    flow = i_resnet((1, 4, 4), blocks=(1, 1), hidden_channels=4, attention=InvertibleAttention).double()
    x = torch.randint(0, 256, (4, 1, 4, 4)).double()
    flow.initialize(x)
    parameters = dict(flow.named_parameters())

    def total(parameters):
        torch.manual_seed(1)
        return torch.func.functional_call(flow, parameters, (x,)).sum()

    found = torch.func.grad(total)(parameters)
    expected = torch.autograd.grad(total(parameters), list(parameters.values()))
    torch.testing.assert_close(tuple(found.values()), expected)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_a_flow_in_half_precision_has_the_density_of_its_weights(half):
    attention = partial(InvertibleAttention, logdet=Exact())
    transform = InvertibleResNet(
        (1, 4, 4), blocks=(2, 1), hidden_channels=8, attention=attention, logdet=Exact()
    )
    flow = Flow(transform, DiagonalGaussian(16))
    flow.initialize(torch.rand(32, 1, 4, 4))
    flow.to(half).eval()
    single, x = copy.deepcopy(flow).float(), torch.rand(6, 1, 4, 4).to(half)
    value, eps = flow.log_prob(x), torch.finfo(half).eps
    assert value.dtype == flow.bits_per_dim(x).dtype == torch.float32
    # Each of the 16 values is rounded from part to part.
    torch.testing.assert_close(value, single.log_prob(x.float()), rtol=eps, atol=16 * eps)
    samples = flow.sample(5)
    assert samples.dtype == half
    z = single.transform(samples.float())
    torch.testing.assert_close(flow.transform.inverse(z.to(half)), samples, rtol=0, atol=4 * eps)
