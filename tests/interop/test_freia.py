from __future__ import annotations

import pytest
import torch

import invertible_attention as ia
from invertible_attention.interop import FreiaAttention, FreiaModule, from_freia, to_freia

from .conftest import GAUSSIAN_NATS, attention, check_bijection

pytest.importorskip("FrEIA", reason="needs FrEIA: pip install 'invertible-attention[interop]'")
import FrEIA.framework as Ff
import FrEIA.modules as Fm


def subnet(n_in: int, n_out: int) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(n_in, 16), torch.nn.ReLU(), torch.nn.Linear(16, n_out))


def sequence(layer: ia.Bijection, **arguments) -> Ff.SequenceINN:
    inn = Ff.SequenceINN(2)
    for block in range(3):
        inn.append(Fm.AllInOneBlock, subnet_constructor=subnet, **arguments)
        if block == 0:
            inn.append(FreiaModule, bijection=layer, view=(1, 2))
    return inn


@pytest.mark.parametrize("shape", [(4, 6), (4, 3, 3)])
def test_passes_freias_own_module_tests(shape):
    # Forward and reverse, the sign of the Jacobian in both, and its value against the numerical one.
    inn = Ff.SequenceINN(*shape)
    inn.append(FreiaAttention, heads=2, logdet=ia.Exact())
    inn.append(FreiaAttention, response="gaussian", normalization="row", logdet=ia.Exact())
    inn = inn.double()
    x = torch.randn(3, *shape, dtype=torch.float64)
    z, jac = inn(x)
    back, jac_back = inn(z, rev=True)
    assert z.shape == x.shape
    torch.testing.assert_close(back, x, atol=1e-9, rtol=0)
    torch.testing.assert_close(jac_back, -jac, atol=1e-8, rtol=0)
    size = x[0].numel()
    for i in range(3):
        jacobian = torch.autograd.functional.jacobian(lambda s: inn(s, jac=False)[0], x[i : i + 1])
        torch.testing.assert_close(jac[i], torch.linalg.slogdet(jacobian.reshape(size, size)).logabsdet)
    assert (inn(x, jac=False)[1] == 0).all()


def test_graph_with_a_split_and_a_condition():
    condition = Ff.ConditionNode(3)
    first = Ff.InputNode(4, 5, name="input")
    attend = Ff.Node(first, FreiaAttention, {"heads": 2, "logdet": ia.Exact()})
    halves = Ff.Node(attend, Fm.Split, {})
    shifted = Ff.Node(
        halves.out0, FreiaModule, {"bijection": lambda shape: ia.flows.ActNorm(shape[0])}, name="actnorm"
    )
    flat = Ff.Node(shifted, Fm.Flatten, {})
    mixed = Ff.Node(flat, Fm.AllInOneBlock, {"subnet_constructor": subnet}, conditions=condition)
    outputs = [Ff.OutputNode(mixed), Ff.OutputNode(halves.out1)]
    inn = Ff.GraphINN([first, attend, halves, shifted, flat, mixed, condition, *outputs]).double()
    x, c = torch.randn(2, 4, 5, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    inn(x, c=[c])
    z, jac = inn(x, c=[c])
    back, jac_back = inn(z, c=[c], rev=True)
    torch.testing.assert_close(back, x, atol=1e-9, rtol=0)
    torch.testing.assert_close(jac_back, -jac, atol=1e-8, rtol=0)


def test_log_probabilities_agree_both_ways(moons):
    layer = attention()
    theirs = sequence(layer)
    first, _, second, third = theirs.module_list
    ours = ia.flows.Flow(
        ia.flows.Sequential(
            from_freia(first),
            ia.interop.FlattenedBijection(layer, (1, 2)),
            from_freia(second),
            from_freia(third),
        ),
        ia.flows.DiagonalGaussian(2, learned=False),
    )
    x = moons(200)
    z, jac = theirs(x)
    log_prob = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1) + jac
    torch.testing.assert_close(log_prob, ours.log_prob(x), atol=1e-5, rtol=0)
    samples, _ = theirs(torch.randn(100, 2), rev=True)
    torch.testing.assert_close(theirs(theirs(samples)[0], rev=True)[0], samples, atol=1e-4, rtol=1e-4)


def test_its_modules_and_networks_are_bijections():
    x = torch.randn(4, 2, dtype=torch.float64)
    block = Fm.AllInOneBlock([(2,)], subnet_constructor=subnet)
    for module in (block, Fm.PermuteRandom([(2,)], seed=1), sequence(attention())):
        check_bijection(from_freia(module.double()), x)
    node = Ff.InputNode(2)
    rotate = Ff.Node(node, Fm.PermuteRandom, {"seed": 1})
    check_bijection(from_freia(Ff.GraphINN([node, rotate, Ff.OutputNode(rotate)])), x)
    image = Fm.IRevNetDownsampling([(1, 4, 4)])
    z = from_freia(image)(torch.randn(2, 1, 4, 4))
    assert z.shape == (2, 4, 2, 2)


def test_a_context_reaches_the_module_that_has_a_condition():
    x, context = torch.randn(4, 2, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    conditional = from_freia(Fm.AllInOneBlock([(2,)], [(3,)], subnet_constructor=subnet).double())
    check_bijection(conditional, x, context)
    assert not torch.allclose(conditional(x, context=context), conditional(x, context=context.flip(0)))
    unconditional = from_freia(Fm.AllInOneBlock([(2,)], subnet_constructor=subnet).double())
    check_bijection(unconditional, x)
    with pytest.raises(ValueError, match="takes no context"):
        unconditional(x, context=context)


def test_mismatched_arguments_are_refused():
    with pytest.raises(ValueError, match="one input"):
        FreiaModule([(2,), (2,)], bijection=ia.flows.ActNorm(2))
    module = to_freia(ia.flows.Squeeze(2), (1, 4, 4), output_shape=(4, 2, 2))
    assert module.output_dims([(1, 4, 4)]) == [(4, 2, 2)]
    assert module([torch.zeros(2, 1, 4, 4)])[0][0].shape == (2, 4, 2, 2)


@pytest.mark.slow
def test_training_loop(moons):
    inn = sequence(attention(logdet=ia.RussianRoulette()), permute_soft=True)
    optimizer = torch.optim.Adam(inn.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        z, log_jac_det = inn(moons(256))
        loss = (0.5 * torch.sum(z**2, 1) - log_jac_det).mean()
        assert torch.isfinite(loss)
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        z, log_jac_det = inn.eval()(moons(2000))
        nats = (0.5 * torch.sum(z**2, 1) - log_jac_det).mean() + GAUSSIAN_NATS - 1
        assert nats < GAUSSIAN_NATS - 0.3
        samples, _ = inn(torch.randn(500, 2), rev=True)
        torch.testing.assert_close(inn(inn(samples)[0], rev=True)[0], samples, atol=1e-4, rtol=1e-4)
