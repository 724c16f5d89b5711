from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import distributions as dist

import invertible_attention as ia
from invertible_attention.interop import from_distribution, to_distribution
from invertible_attention.interop.distributions import DistributionTransform

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
        ia.flows.Sequential(from_distribution(first), ia.interop.OnVectors(layer, (1, 2))),
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


@pytest.mark.parametrize("cache_size", [0, 1])
def test_an_estimated_log_determinant_is_drawn_once_per_pair(cache_size):
    layer = attention(logdet=ia.RussianRoulette(evaluation_exact_terms=1)).double()
    transform = to_distribution(layer, view=(1, 2), cache_size=cache_size)
    x = torch.randn(6, 2, dtype=torch.float64)
    y = transform(x)
    logdet = transform.log_abs_det_jacobian(x, y)
    assert torch.equal(transform.log_abs_det_jacobian(x, y), logdet)
    assert torch.equal(transform.inv.log_abs_det_jacobian(y, x), -logdet)
    assert not torch.equal(transform.log_abs_det_jacobian(x.clone(), y), logdet)
    x = transform.inv(y)  # from the other side
    logdet = transform.log_abs_det_jacobian(x, y)
    assert torch.equal(transform.inv.log_abs_det_jacobian(y, x), -logdet)


def test_with_a_cache_a_sample_has_one_log_probability():
    layer = attention(logdet=ia.RussianRoulette(evaluation_exact_terms=1))
    for cache_size in (0, 1):
        transform = to_distribution(layer, view=(1, 2), cache_size=cache_size).inv
        data = dist.TransformedDistribution(normal(2, dtype=torch.float32), [transform])
        x = data.rsample((8,))
        assert torch.equal(data.log_prob(x), data.log_prob(x)) == bool(cache_size)


def test_the_inverse_computes_no_log_determinant_until_asked():
    logit = Counted()
    transform = to_distribution(logit)
    y = torch.randn(3, 2)
    x = transform.inv(y)
    assert logit.calls == ("inverse",)
    expected = logit.forward_and_logdet(x)[1]
    torch.testing.assert_close(transform.log_abs_det_jacobian(x, y), expected)
    y = transform(x)
    calls = logit.calls
    transform.log_abs_det_jacobian(x, y)
    assert logit.calls == calls


def test_what_is_remembered_is_forgotten_when_anything_changes():
    layer = attention()
    transform = to_distribution(layer, view=(1, 2))
    x = torch.randn(5, 2)
    y = transform(x)
    assert transform(x) is y
    assert transform.inv(y) is x
    with torch.no_grad():
        layer.branch.value_weight.mul_(1.5)
    moved = transform(x)
    assert not torch.equal(moved, y)
    transform.eval()
    assert transform(x) is not moved
    y = transform(x)
    x.add_(1)
    assert not torch.equal(transform(x), y)
    # So a loop over one and the same batch trains.
    optimizer = torch.optim.SGD(transform.parameters(), lr=0.1)
    data = dist.TransformedDistribution(normal(2, dtype=torch.float32), [transform.inv])
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = -data.log_prob(x).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[2] < losses[0]


def test_a_composition_solves_for_nothing_to_score_data():
    calls = []
    layers = [to_distribution(ia.flows.ActNorm(2)), to_distribution(attention(), view=(1, 2))]
    for layer in layers:
        layer(torch.randn(9, 2))
        layer.bijection.inverse = lambda *a: calls.append(a)
        layer.bijection.inverse_and_logdet = lambda *a: calls.append(a)
    data = dist.TransformedDistribution(normal(2, dtype=torch.float32), [dist.ComposeTransform(layers).inv])
    data.log_prob(torch.randn(4, 2))
    assert not calls


def test_it_can_be_hashed_copied_stored_and_found():
    layer = attention()
    transform = to_distribution(layer, view=(1, 2), cache_size=1)
    x = torch.randn(5, 2, requires_grad=True)
    y = transform(x)
    assert len({transform, transform.with_cache(0), transform}) == 2
    assert transform == transform.inv.inv
    assert set(transform.parameters()) == set(layer.parameters())
    assert list(torch.nn.ModuleList([transform]).modules())
    for other in (copy.deepcopy(transform), pickle.loads(pickle.dumps(transform))):
        torch.testing.assert_close(other(x), y)
        torch.testing.assert_close(other.inv(y), x, atol=1e-5, rtol=1e-5)
    transform.load_state_dict(copy.deepcopy(transform).state_dict())
    assert isinstance(transform.with_cache(0), DistributionTransform)
    assert transform.with_cache(1) is transform
    y = transform(x)
    assert transform(x) is y
    transform.clear_cache()
    assert transform(x) is not y


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
    ):
        check_bijection(from_distribution(transform), x)
        check_bijection(copy.deepcopy(from_distribution(transform)), x)
    with pytest.raises(ValueError, match="AbsTransform"):
        from_distribution(dist.AbsTransform())


def test_parameters_inside_a_composition_are_found():
    inner = to_distribution(attention(), view=(1, 2))
    outer = from_distribution(dist.ComposeTransform([dist.TanhTransform().inv, inner.inv]).inv)
    assert set(outer.parameters()) == set(inner.parameters())


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
    data = dist.TransformedDistribution(base, [dist.ComposeTransform(layers).inv])
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
        transform = data.transforms[0]
        torch.testing.assert_close(transform(transform.inv(samples)), samples, atol=1e-4, rtol=1e-4)
