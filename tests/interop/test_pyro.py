from __future__ import annotations

import copy
import pickle

import pytest
import torch

import invertible_attention as ia
from invertible_attention.interop import from_distribution, to_pyro, to_pyro_conditional

from .conftest import GAUSSIAN_NATS, attention, check_bijection

pyro = pytest.importorskip("pyro", reason="needs pyro-ppl: pip install 'invertible-attention[interop]'")
import pyro.distributions as dist  # noqa: E402
from pyro.distributions import transforms  # noqa: E402
from pyro.infer import SVI, Trace_ELBO  # noqa: E402


def normal() -> dist.Distribution:
    return dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1)


@pytest.mark.parametrize("event_shape", [(2, 3), (2, 2, 2)])
def test_passes_pyros_own_transform_tests(event_shape):
    # Inverse without caching, one log-determinant from both sides, shapes, and the numerical Jacobian.
    layer = ia.InvertibleAttention(2, "embedded_gaussian", logdet=ia.Exact()).double()
    transform = to_pyro(layer, event_dim=len(event_shape))
    x = torch.randn(10, *event_shape, dtype=torch.float64)
    y = transform._call(x)
    back = transform._inverse(y)
    assert (back - x).abs().max() < 1e-6
    assert (transform.log_abs_det_jacobian(x, y) - transform.log_abs_det_jacobian(back, y)).abs().max() < 1e-6
    for batch in [(3,), (3, 4), (3, 4, 5)]:
        base = dist.Normal(torch.zeros(batch + event_shape, dtype=torch.float64), 1.0)
        assert dist.TransformedDistribution(base, [transform]).sample().shape == batch + event_shape
    step, x = 1e-4, x[0]
    size = x.numel()
    columns = [
        (transform(x + d.view(x.shape)) - transform(x - d.view(x.shape))).flatten() / (2 * step)
        for d in step * torch.eye(size, dtype=torch.float64)
    ]
    numerical = torch.stack(columns, 1).det().abs().log()
    assert (transform.log_abs_det_jacobian(x, transform(x)) - numerical).abs() < 1e-4


def test_log_probabilities_agree_both_ways(moons):
    layer = attention()
    torch.manual_seed(1)
    coupling = transforms.affine_coupling(2, hidden_dims=[16])
    theirs = dist.TransformedDistribution(normal(), [to_pyro(layer, view=(1, 2)).inv, coupling])
    ours = ia.flows.Flow(
        ia.flows.Sequential(from_distribution(coupling.inv), ia.interop.FlattenedBijection(layer, (1, 2))),
        ia.flows.DiagonalGaussian(2, learned=False),
    )
    x = moons(200)
    torch.testing.assert_close(theirs.log_prob(x), ours.log_prob(x), atol=1e-5, rtol=0)
    samples = theirs.sample((100,))
    torch.testing.assert_close(theirs.log_prob(samples), ours.log_prob(samples), atol=1e-5, rtol=0)


def test_its_transforms_are_bijections():
    x = torch.randn(4, 2, dtype=torch.float64)
    # Pyro's inverse of a matrix exponential is a series, of 8 terms by default.
    exponential = transforms.matrix_exponential(2, iterations=20)
    for transform in (transforms.affine_coupling(2), transforms.spline(2), exponential):
        bijection = from_distribution(transform.double())
        assert list(bijection.parameters())
        check_bijection(bijection, x)


@pytest.mark.parametrize(
    "make", [transforms.affine_coupling, transforms.spline, transforms.planar, transforms.matrix_exponential]
)
def test_cached_values_of_its_transforms_are_not_used(make):
    flow = ia.flows.Flow(
        ia.flows.Sequential(from_distribution(make(2)), ia.flows.ActNorm(2)),
        ia.flows.DiagonalGaussian(2, learned=False),
    )
    x = torch.randn(16, 2)
    before = flow.log_prob(x)
    for _ in range(2):  # two losses on one batch
        flow.log_prob(x).sum().backward()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.data.add_(0.3)
    after = flow.log_prob(x)
    assert not torch.allclose(after, before, atol=1e-3)
    torch.testing.assert_close(flow.log_prob(x.clone()), after)
    torch.testing.assert_close(copy.deepcopy(flow).log_prob(x), after)


def test_copies_of_a_conditional_density(moons):
    attend = to_pyro_conditional(attention(context_channels=3), view=(1, 2))
    data = dist.conditional.ConditionalTransformedDistribution(normal(), [attend.inv])
    x, context = moons(5), torch.randn(5, 3)
    log_prob = data.condition(context).log_prob(x)
    for duplicate in (copy.deepcopy(data), pickle.loads(pickle.dumps(data))):
        torch.testing.assert_close(duplicate.condition(context).log_prob(x), log_prob)


@pytest.mark.slow
def test_training_loop(moons):
    pyro.clear_param_store()
    layers = [transforms.spline_coupling(2, count_bins=8) for _ in range(2)]
    layers.insert(1, to_pyro(attention(logdet=ia.RussianRoulette()), view=(1, 2)).inv)
    data = dist.TransformedDistribution(normal(), layers)
    modules = torch.nn.ModuleList([layers[0], layers[1].inv, layers[2]])
    optimizer = torch.optim.Adam(modules.parameters(), lr=5e-3)
    for _ in range(150):
        optimizer.zero_grad()
        loss = -data.log_prob(moons(256)).mean()
        assert torch.isfinite(loss)
        loss.backward()
        optimizer.step()
        data.clear_cache()
    with torch.no_grad():
        modules.eval()
        assert -data.log_prob(moons(2000)).mean() < GAUSSIAN_NATS - 0.3
        x = data.sample((500,))
        z = x
        for layer in reversed(layers):
            z = layer.inv(z)
        for layer in layers:
            z = layer(z)
        torch.testing.assert_close(z, x, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_variational_inference_with_attention_in_the_guide():
    # The guide's samples go through the bijection; Pyro finds the parameters with pyro.module.
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    attend = to_pyro(attention(), view=(1, 2))
    shift = to_pyro(ia.flows.ActNorm(2))
    shift(torch.randn(64, 2))
    target = torch.tensor([1.5, -0.5])

    def model():
        pyro.sample("z", dist.Normal(target, 0.5).to_event(1))

    def guide():
        pyro.module("attend", attend)
        pyro.module("shift", shift)
        pyro.sample("z", dist.TransformedDistribution(normal(), [attend, shift]))

    svi = SVI(
        model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO(num_particles=16, vectorize_particles=True)
    )
    losses = [svi.step() for _ in range(120)]
    assert len(list(pyro.get_param_store().keys())) == len(list(attend.parameters())) + 2
    # Up to a normalizing constant of zero, the divergence between guide and target.
    assert sum(losses[-20:]) / 20 < 0.2 < losses[0]
