from __future__ import annotations

import copy
import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import distributions as dist

import invertible_attention as ia
from invertible_attention.interop import from_distribution, to_distribution

from .conftest import GAUSSIAN_NATS, attention, check_bijection


def normal(*shape: int, dtype: torch.dtype = torch.float64) -> dist.Distribution:
    return dist.Independent(
        dist.Normal(torch.zeros(shape, dtype=dtype), torch.ones((), dtype=dtype)), len(shape)
    )


class Counted(ia.flows.Logit):
    """Counts its calls."""

    calls: tuple[str, ...] = ()

    def forward_and_logdet(self, x, *, context=None, mask=None):
        self.calls += ("forward",)
        return super().forward_and_logdet(x, context=context, mask=mask)

    def inverse(self, z, *, context=None, mask=None):
        self.calls += ("inverse",)
        return super().inverse(z, context=context, mask=mask)


def test_log_probabilities_agree_both_ways():
    layer = attention().double()
    first = dist.ComposeTransform(
        [dist.AffineTransform(0.3, torch.tensor([0.5, 2.0]), event_dim=1), dist.SoftmaxTransform().inv]
    ).parts[0]
    theirs = dist.TransformedDistribution(normal(2), [to_distribution(layer, view=(1, 2)).inv, first.inv])
    ours = ia.flows.Flow(
        ia.flows.Sequential(from_distribution(first), ia.interop.FlattenedBijection(layer, (1, 2))),
        ia.flows.DiagonalGaussian(2, learned=False),
    )
    x = torch.randn(50, 2, dtype=torch.float64)
    torch.testing.assert_close(theirs.log_prob(x), ours.log_prob(x), atol=1e-5, rtol=0)
    samples = theirs.sample((3, 7))
    assert samples.shape == (3, 7, 2)
    torch.testing.assert_close(
        theirs.log_prob(samples).flatten(), ours.log_prob(samples.flatten(0, 1)), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_event_and_batch_axes(batch):
    layer = ia.InvertibleAttention(2, "gaussian", logdet=ia.Exact()).double()
    transform = to_distribution(layer, event_dim=3)
    x = torch.randn(*batch, 2, 2, 3, dtype=torch.float64)
    y = transform(x)
    logdet = transform.log_abs_det_jacobian(x, y)
    assert y.shape == x.shape
    assert logdet.shape == batch
    torch.testing.assert_close(transform.inv(y), x, atol=1e-9, rtol=0)
    assert transform.domain.event_dim == transform.codomain.event_dim == transform.event_dim == 3
    assert bool(transform.domain.check(x).all())
    assert transform.forward_shape(x.shape) == x.shape
    flat, expected = layer.forward_and_logdet(x.reshape(-1, 2, 2, 3))
    torch.testing.assert_close(y.reshape(-1, 2, 2, 3), flat)
    torch.testing.assert_close(logdet.flatten(), expected)
    with pytest.raises(ValueError, match="3 axes"):
        transform(torch.zeros(2, 2, dtype=torch.float64))


def test_a_bijection_that_changes_the_shape():
    squeeze = ia.flows.Sequential(ia.flows.Squeeze(2), ia.flows.Flatten((4, 2, 2)))
    transform = to_distribution(squeeze, event_shape=(1, 4, 4), output_shape=(16,))
    data = dist.TransformedDistribution(normal(16, dtype=torch.float32), [transform.inv])
    assert data.event_shape == (1, 4, 4)
    x = data.sample((5,))
    assert x.shape == (5, 1, 4, 4)
    torch.testing.assert_close(data.log_prob(x), normal(16, dtype=torch.float32).log_prob(squeeze(x)))
    with pytest.raises(ValueError, match=r"\(1, 4, 4\).*\(5, 2\)"):
        transform.forward_shape((5, 2))
    with pytest.raises(ValueError, match=r"\(16,\)"):
        to_distribution(squeeze, output_shape=(16,))
    with pytest.raises(ValueError, match="0"):
        to_distribution(squeeze, 0)


@pytest.fixture
def density():
    """A density in two layers, the layers, and the same density as a flow of this library."""
    layers = torch.nn.ModuleList(
        [to_distribution(ia.flows.ActNorm(2)), to_distribution(attention(), view=(1, 2))]
    )
    for layer in layers:
        layer(torch.randn(32, 2))
    layers.double()
    data = dist.TransformedDistribution(normal(2), [layer.inv for layer in reversed(layers)])
    bijections = ia.flows.Sequential(*(layer.bijection for layer in layers))
    return data, layers, ia.flows.Flow(bijections, ia.flows.DiagonalGaussian(2, learned=False).double())


def test_repeated_calls_draw_the_estimator_again():
    layer = attention(logdet=ia.RussianRoulette(evaluation_exact_terms=1)).double()
    transform = to_distribution(layer, view=(1, 2))
    data = dist.TransformedDistribution(normal(2), [transform.inv])
    x = torch.randn(6, 2, dtype=torch.float64)
    y = transform(x)
    for draw in (lambda: transform.log_abs_det_jacobian(x, y), lambda: data.log_prob(x)):
        assert len({draw().sum().item() for _ in range(50)}) == 50


def scale(parameters) -> None:
    with torch.no_grad():
        for parameter in parameters:
            parameter.data.mul_(1.7)


def swap(parameters) -> None:
    for parameter in parameters:
        parameter.data = 0.6 * parameter.data


def fused_step(parameters) -> None:
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    torch.optim.Adam(parameters, lr=0.3, fused=True).step()


@pytest.mark.parametrize("change", [scale, swap, fused_step])
def test_values_use_the_current_weights(density, change):
    data, layers, flow = density
    x = torch.randn(7, 2, dtype=torch.float64)
    samples = data.sample((5,))
    before = data.log_prob(x)
    change(list(layers.parameters()))
    after = data.log_prob(x)
    assert not torch.allclose(after, before, atol=1e-3)
    torch.testing.assert_close(after, flow.log_prob(x))
    torch.testing.assert_close(data.log_prob(samples), flow.log_prob(samples))
    for layer in layers:
        y = layer(x)
        torch.testing.assert_close(layer.inv(y), x)
        change(list(layers.parameters()))
        torch.testing.assert_close(layer.log_abs_det_jacobian(x, y), layer.call_and_ladj(x)[1])
        assert not torch.allclose(layer.inv(y), x, atol=1e-3)


def test_values_use_the_current_points(density):
    data, layers, flow = density
    x = torch.randn(7, 2, dtype=torch.float64)
    data.log_prob(x)
    x.data.mul_(0.3)
    torch.testing.assert_close(data.log_prob(x), flow.log_prob(x))
    y = layers[1](x)
    y.data.mul_(0.3)
    torch.testing.assert_close(layers[1](layers[1].inv(y)), y)


def test_two_losses_on_one_batch(density):
    data, layers, flow = density
    x = torch.randn(7, 2, dtype=torch.float64)
    for _ in range(2):
        data.log_prob(x).sum().backward()
    grads = [parameter.grad.clone() for parameter in layers.parameters()]
    layers.zero_grad()
    (2 * flow.log_prob(x).sum()).backward()
    for parameter, grad in zip(layers.parameters(), grads, strict=True):
        torch.testing.assert_close(grad, parameter.grad)


def test_meta_learning_through_functional_call(density):
    data, layers, flow = density
    x, held_out = torch.randn(2, 7, 2, dtype=torch.float64)

    class Loss(torch.nn.Module):
        def __init__(self, density, parts):
            super().__init__()
            self.density, self.parts = density, parts

        def forward(self, x):
            return -self.density.log_prob(x).mean()

    def meta_loss(module):
        parameters = {n: p.detach().clone().requires_grad_() for n, p in module.named_parameters()}
        inner = torch.func.functional_call(module, parameters, (x,))
        step = torch.autograd.grad(inner, list(parameters.values()), create_graph=True)
        moved = {n: p - 0.5 * g for (n, p), g in zip(parameters.items(), step, strict=True)}
        outer = torch.func.functional_call(module, moved, (x,)) + torch.func.functional_call(
            module, moved, (held_out,)
        )
        return outer, *torch.autograd.grad(outer, list(parameters.values()))

    for actual, expected in zip(meta_loss(Loss(data, layers)), meta_loss(Loss(flow, flow)), strict=True):
        torch.testing.assert_close(actual, expected)


def test_threads_are_isolated(density):
    data, _, flow = density
    batches = torch.randn(16, 5, 2, dtype=torch.float64)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(data.log_prob, batches))
    for x, log_prob in zip(batches, found, strict=True):
        torch.testing.assert_close(log_prob, flow.log_prob(x))


def store(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, store, lambda d: pickle.loads(pickle.dumps(d))])
def test_copied_density_matches(density, duplicate):
    data, layers, _ = density
    x = torch.randn(7, 2, dtype=torch.float64)
    log_prob = data.log_prob(x)
    other, others = duplicate((data, layers))
    torch.testing.assert_close(other.log_prob(x), log_prob)
    assert other.sample((3,)).shape == (3, 2)
    # The copy has its own weights, equal to those of the copied layers.
    scale(others.parameters())
    assert not torch.allclose(other.log_prob(x), log_prob, atol=1e-3)
    torch.testing.assert_close(data.log_prob(x), log_prob)


def test_inverse_computes_the_log_determinant_lazily():
    logit = Counted()
    transform = to_distribution(logit)
    y = torch.randn(3, 2)
    x = transform.inv(y)
    assert logit.calls == ("inverse",)
    transform.call_and_ladj(x)
    assert logit.calls == ("inverse", "forward")


def test_cache_size_is_refused():
    transform = to_distribution(ia.flows.ActNorm(2))
    assert transform.with_cache(0) is transform
    for ask in (
        lambda: transform.with_cache(),
        lambda: to_distribution(ia.flows.ActNorm(2), cache_size=1),
        lambda: dist.ComposeTransform([transform], cache_size=1),
        lambda: dist.ComposeTransform([transform.inv]).with_cache(1),
    ):
        with pytest.raises(ValueError, match="cache_size must be 0, got 1"):
            ask()


def test_log_prob_needs_no_solve(density):
    data, layers, _ = density
    calls = []
    for layer in layers:
        layer.bijection.inverse = lambda *args, **given: calls.append(given)
        layer.bijection.inverse_and_logdet = lambda *args, **given: calls.append(given)
    data.log_prob(torch.randn(4, 2, dtype=torch.float64))
    assert not calls


def test_a_composition_is_the_list_of_its_parts(density):
    _, layers, flow = density
    composed = dist.TransformedDistribution(normal(2), [dist.ComposeTransform(list(layers)).inv])
    x = torch.randn(7, 2, dtype=torch.float64)
    parameters = list(layers.parameters())
    for density in (composed, copy.deepcopy(composed)):
        torch.testing.assert_close(density.log_prob(x), flow.log_prob(x))
    found = torch.autograd.grad(composed.log_prob(x).sum(), parameters)
    expected = torch.autograd.grad(flow.log_prob(x).sum(), parameters)
    torch.testing.assert_close(found, expected)


def test_hashing_copying_saving_and_registration():
    layer = attention()
    transform = to_distribution(layer, view=(1, 2))
    x = torch.randn(5, 2, requires_grad=True)
    y = transform(x)
    assert len({transform, copy.deepcopy(transform), transform}) == 2
    assert transform == transform.inv.inv
    assert set(transform.parameters()) == set(layer.parameters())
    assert list(torch.nn.ModuleList([transform]).modules())
    for other in (copy.deepcopy(transform), pickle.loads(pickle.dumps(transform))):
        torch.testing.assert_close(other(x), y)
        torch.testing.assert_close(other.inv(y), x, atol=1e-5, rtol=1e-5)
    transform.load_state_dict(copy.deepcopy(transform).state_dict())


def test_its_transforms_are_bijections():
    x = torch.randn(4, 3, dtype=torch.float64)
    scale = torch.rand(3, dtype=torch.float64) + 0.5
    affine = dist.AffineTransform(0.3, scale)
    for transform in (
        affine,
        dist.IndependentTransform(affine, 1),
        dist.TanhTransform(),
        dist.ComposeTransform([affine, dist.SigmoidTransform()]),
        affine.inv,
        dist.ComposeTransform([dist.TanhTransform(), affine.inv.with_cache(1)]),
        dist.StackTransform(
            [dist.ExpTransform(), dist.AffineTransform(1.0, 2.0).inv, dist.TanhTransform()], 1
        ),
    ):
        check_bijection(from_distribution(transform), x)
        check_bijection(copy.deepcopy(from_distribution(transform)), x)
        check_bijection(store(from_distribution(transform)), x)
    with pytest.raises(ValueError, match="AbsTransform"):
        from_distribution(dist.AbsTransform())


def test_parameters_inside_a_composition_are_found():
    inner = to_distribution(attention(), view=(1, 2))
    outer = from_distribution(dist.ComposeTransform([dist.TanhTransform().inv, inner.inv]).inv)
    assert set(outer.parameters()) == set(inner.parameters())


def test_cached_values_of_a_transform_are_not_used():
    shift = torch.zeros(2)
    bijection = from_distribution(dist.AffineTransform(shift, 1.0, event_dim=1, cache_size=1))
    x = torch.zeros(3, 2)
    assert torch.equal(bijection(x), x)
    shift.add_(1)
    assert torch.equal(bijection(x), x + 1)
    x.add_(1)
    assert torch.equal(bijection(x), x + 1)


@pytest.mark.slow
def test_training_loop(moons):
    layers = [
        to_distribution(ia.flows.ActNorm(2)),
        to_distribution(attention(), view=(1, 2)),
        *(
            to_distribution(ia.flows.Residual(ia.flows.LipschitzLinearBranch(2, 32), logdet=ia.Exact()))
            for _ in range(2)
        ),
    ]
    modules = torch.nn.ModuleList(layers)
    for layer in layers:
        layer(moons(256))
    base = normal(2, dtype=torch.float32)
    data = dist.TransformedDistribution(base, [layer.inv for layer in reversed(layers)])
    optimizer = torch.optim.Adam(modules.parameters(), lr=5e-3)
    for _ in range(150):
        optimizer.zero_grad()
        loss = -data.log_prob(moons(256)).mean()
        assert torch.isfinite(loss)
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        modules.eval()
        assert -data.log_prob(moons(2000)).mean() < GAUSSIAN_NATS - 0.05
        samples = data.sample((200,))
        transform = dist.ComposeTransform(data.transforms)
        torch.testing.assert_close(transform(transform.inv(samples)), samples, atol=1e-4, rtol=1e-4)
