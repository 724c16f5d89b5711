from __future__ import annotations

import pytest
import torch

import invertible_attention as ia
from invertible_attention.interop import from_normflows, to_normflows

from .conftest import GAUSSIAN_NATS, attention, check_bijection

nf = pytest.importorskip("normflows", reason="needs normflows: pip install 'invertible-attention[interop]'")
flow_test = pytest.importorskip("normflows.flows.flow_test")


def coupling(seed: int) -> nf.flows.Flow:
    torch.manual_seed(seed)
    return nf.flows.AffineCouplingBlock(nf.nets.MLP([1, 16, 16, 2], init_zeros=False))


class Shifted(nf.flows.Flow):
    """Not what it says: its inverse gives something else."""

    def forward(self, z):
        return z + 1, torch.zeros(len(z), dtype=z.dtype)

    def inverse(self, z):
        return z + 1, torch.zeros(len(z), dtype=z.dtype)


def test_passes_normflows_own_invertibility_check():
    check = flow_test.FlowTest()
    for arguments in ({}, {"response": "gaussian"}, {"response": "dot_product", "normalization": "row"}):
        flow = to_normflows(attention(**arguments), view=(1, 2)).double()
        check.checkForwardInverse(flow, torch.randn(5, 2, dtype=torch.float64))
    with pytest.raises(AssertionError):
        check.checkForwardInverse(Shifted(), torch.randn(5, 2, dtype=torch.float64))
    image = to_normflows(ia.InvertibleAttention(4, logdet=ia.Exact())).double()
    check.checkForwardInverse(image, torch.randn(2, 4, 3, 3, dtype=torch.float64), atol=1e-9, rtol=0)


def test_log_probabilities_agree_both_ways(moons):
    layer, first, second = attention(), coupling(1), coupling(2)
    view = ia.interop.FlattenedBijection(layer, (1, 2))
    # The list of normflows goes from latent to data, ours from data to latent.
    theirs = nf.NormalizingFlow(
        nf.distributions.DiagGaussian(2, trainable=False), [second, to_normflows(layer, view=(1, 2)), first]
    )
    ours = ia.flows.Flow(
        ia.flows.Sequential(from_normflows(first), view, from_normflows(second)),
        ia.flows.DiagonalGaussian(2, learned=False),
    )
    x = moons(200)
    torch.testing.assert_close(theirs.log_prob(x), ours.log_prob(x), atol=1e-5, rtol=0)
    samples, log_prob = theirs.sample(100)
    torch.testing.assert_close(log_prob, ours.log_prob(samples), atol=1e-4, rtol=1e-4)


def test_its_layers_are_bijections():
    for flow in (coupling(3), nf.flows.LULinearPermute(2), nf.flows.Permute(2, mode="swap")):
        check_bijection(from_normflows(flow).double(), torch.randn(4, 2, dtype=torch.float64))


def test_a_context_reaches_the_layer_that_takes_one():
    torch.manual_seed(0)
    flow = nf.flows.CoupledRationalQuadraticSpline(2, 1, 8, num_context_channels=3, reverse_mask=True)
    bijection = from_normflows(flow).double()
    x, context = torch.randn(4, 2, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    check_bijection(bijection, x, context)
    assert not torch.allclose(bijection(x, context=context), bijection(x, context=context.flip(0)))
    # a layer without context ignores the chain's
    unconditional = from_normflows(coupling(3)).double()
    check_bijection(unconditional, x)
    with pytest.raises(ValueError, match="takes no context"):
        unconditional(x, context=context)


@pytest.mark.slow
def test_training_loop(moons):
    flows = []
    for seed in range(4):
        flows += [coupling(seed), nf.flows.Permute(2, mode="swap")]
    flows.insert(5, to_normflows(attention(logdet=ia.RussianRoulette()), view=(1, 2)))
    model = nf.NormalizingFlow(nf.distributions.DiagGaussian(2), flows)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(150):
        optimizer.zero_grad()
        loss = model.forward_kld(moons(256))
        assert torch.isfinite(loss)
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        loss = model.eval().forward_kld(moons(2000))
        assert loss < GAUSSIAN_NATS - 0.3
        samples, _ = model.sample(500)
        torch.testing.assert_close(model.forward(model.inverse(samples)), samples, atol=1e-4, rtol=1e-4)


def test_reverse_direction_trains_with_a_gradient_through_the_solver():
    flow = to_normflows(attention(), view=(1, 2))
    target = nf.distributions.TwoMoons()
    model = nf.NormalizingFlow(nf.distributions.DiagGaussian(2), [flow], target)
    model.reverse_kld(64).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in flow.parameters())
