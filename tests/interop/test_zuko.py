from __future__ import annotations

import copy

import pytest
import torch

import invertible_attention as ia
from invertible_attention.interop import from_zuko, to_zuko

from .conftest import GAUSSIAN_NATS, attention, check_bijection

zuko = pytest.importorskip("zuko", reason="needs zuko: pip install 'invertible-attention[interop]'")


def flow_with(layer: ia.Bijection, seed: int = 0, **arguments) -> zuko.lazy.Flow:
    """A masked autoregressive flow, with attention after its first transformation."""
    torch.manual_seed(seed)
    flow = zuko.flows.MAF(2, transforms=3, hidden_features=(16, 16), **arguments)
    first, *others = flow.transform.transforms
    return zuko.lazy.Flow([first, to_zuko(layer, view=(1, 2)), *others], flow.base)


@pytest.mark.parametrize("response", ["gaussian", "embedded_gaussian", "dot_product", "concatenation"])
def test_passes_zukos_own_transformation_tests(response):
    # Shapes, inverse, both log-determinants and gradients, for any number of batch axes.
    layer = ia.InvertibleAttention(2, response, logdet=ia.Exact()).double()
    t = to_zuko(layer, event_dim=2)()
    assert t.bijective
    assert t.domain.event_dim == t.codomain.event_dim == 2
    for batch in ((), (5,), (2, 3)):
        x = torch.randn(*batch, 2, 3, dtype=torch.float64, requires_grad=True)
        y, ladj = t.call_and_ladj(x)
        assert y.shape == x.shape
        assert ladj.shape == batch
        torch.testing.assert_close(y, t(x))
        torch.testing.assert_close(t.inv(y), x, atol=1e-9, rtol=0)
        back, inverse_ladj = t.inv.call_and_ladj(y.detach())
        torch.testing.assert_close(back, x, atol=1e-9, rtol=0)
        torch.testing.assert_close(inverse_ladj, -ladj, atol=1e-8, rtol=0)
        (gradient,) = torch.autograd.grad(ladj.sum() + y.square().sum(), x)
        assert gradient.isfinite().all()
    x = torch.randn(2, 3, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(t, x).reshape(6, 6)
    torch.testing.assert_close(t.log_abs_det_jacobian(x, t(x)), torch.linalg.slogdet(jacobian).logabsdet)


def test_log_probabilities_agree_both_ways(moons):
    layer = attention()
    theirs = flow_with(layer)
    first, _, second, third = theirs.transform.transforms
    ours = ia.flows.Flow(
        ia.flows.Sequential(
            from_zuko(first),
            ia.interop.FlattenedBijection(layer, (1, 2)),
            from_zuko(second),
            from_zuko(third),
        ),
        ia.flows.DiagonalGaussian(2, learned=False),
    )
    x = moons(200)
    torch.testing.assert_close(theirs().log_prob(x), ours.log_prob(x), atol=1e-5, rtol=0)
    samples, log_prob = theirs().rsample_and_log_prob((100,))
    torch.testing.assert_close(log_prob, ours.log_prob(samples), atol=1e-4, rtol=1e-4)


def test_its_transformations_are_bijections():
    x = torch.randn(4, 2, dtype=torch.float64)
    for flow in (zuko.flows.MAF(2, transforms=2), zuko.flows.NSF(2, transforms=2)):
        check_bijection(from_zuko(flow.transform).double(), x)
    check_bijection(from_zuko(zuko.transforms.RotationTransform(torch.randn(2, 2).double())), x)
    check_bijection(
        from_zuko(zuko.transforms.SoftclipTransform(5.0)), x
    )  # elementwise: log-determinants are summed


def test_context_reaches_the_transformation_that_uses_it():
    x, context = torch.randn(4, 2, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    conditional = from_zuko(zuko.flows.MAF(2, 3).transform, uses_context=True).double()
    check_bijection(conditional, x, context)
    assert not torch.allclose(conditional(x, context=context), conditional(x, context=context.flip(0)))
    unconditional = from_zuko(zuko.flows.MAF(2).transform).double()
    check_bijection(unconditional, x)
    with pytest.raises(ValueError, match="takes no context"):
        unconditional(x, context=context)


def test_log_density_takes_one_evaluation_and_one_draw():
    layer = attention(logdet=ia.RussianRoulette(evaluation_exact_terms=1)).double()
    flow = flow_with(layer).double()()
    x = torch.randn(6, 2, dtype=torch.float64)
    calls = []
    layer.forward_and_logdet = lambda *a, **k: (
        calls.append(1) or type(layer).forward_and_logdet(layer, *a, **k)
    )
    draws = {flow.log_prob(x).sum().item() for _ in range(20)}
    assert len(draws) == len(calls) == 20


def test_parameters_are_found_and_copies_work():
    flow = flow_with(attention())
    names = [name for name, _ in flow.named_parameters()]
    assert any("value_weight" in name for name in names)
    x = torch.randn(5, 2)
    torch.testing.assert_close(copy.deepcopy(flow)().log_prob(x), flow().log_prob(x))


@pytest.mark.slow
def test_training_loop(moons):
    flow = flow_with(attention(logdet=ia.RussianRoulette()))
    optimizer = torch.optim.Adam(flow.parameters(), lr=5e-3)
    for _ in range(150):
        loss = -flow().log_prob(moons(256)).mean()
        assert torch.isfinite(loss)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        assert -flow.eval()().log_prob(moons(2000)).mean() < GAUSSIAN_NATS - 0.3
        samples = flow().sample((500,))
        transform = flow().transform
        torch.testing.assert_close(transform.inv(transform(samples)), samples, atol=1e-4, rtol=1e-4)
