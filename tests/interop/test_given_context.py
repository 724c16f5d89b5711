"""Attention with a context inside each library: log-probabilities agree with ours, and samples invert."""

from __future__ import annotations

import pytest
import torch

import invertible_attention as ia
from invertible_attention import interop

from .conftest import attention

REASON = "needs the library: pip install 'invertible-attention[interop]'"


@pytest.fixture(params=["vector", "tokens"])
def kind(request):
    return request.param


@pytest.fixture(params=[ia.Certified(), ia.Triangular(affine=True)], ids=["contraction", "order"])
def given(kind, request):
    """A layer, our flow around it, data and a context per sample."""
    torch.manual_seed(0)
    layer = attention(context_channels=3, context_kind=kind, constraint=request.param)
    flow = ia.flows.Flow(
        interop.FlattenedBijection(layer, (1, 2)), ia.flows.DiagonalGaussian(2, learned=False)
    )
    context = torch.randn(20, 3) if kind == "vector" else torch.randn(20, 3, 4)
    return layer, flow, torch.randn(20, 2), context


def check(log_prob, flow, x, context):
    torch.testing.assert_close(log_prob, flow.log_prob(x, context=context), atol=1e-5, rtol=0)
    assert (flow.log_prob(x, context=context.roll(1, 0)) - log_prob).abs().max() > 1e-3


def test_zuko(given, kind):
    zuko = pytest.importorskip("zuko", reason=REASON)
    layer, flow, x, context = given
    lazy = interop.to_zuko(layer, view=(1, 2), context_dim=1 if kind == "vector" else 2)
    base = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2), torch.ones(2)), 1)
    theirs = zuko.distributions.NormalizingFlow(lazy(context), base.expand((20,)))
    check(theirs.log_prob(x), flow, x, context)
    samples = theirs.sample((7,))  # batch axes before those of the context
    assert samples.shape == (7, 20, 2)
    log_prob = theirs.log_prob(samples)
    repeated = context.expand(7, *context.shape).flatten(0, 1)
    torch.testing.assert_close(
        log_prob.flatten(), flow.log_prob(samples.flatten(0, 1), context=repeated), atol=1e-5, rtol=0
    )


def test_nflows(given, kind):
    pytest.importorskip("nflows", reason=REASON)
    from nflows.distributions import StandardNormal
    from nflows.flows import Flow

    layer, flow, x, context = given
    theirs = Flow(interop.to_nflows(layer, view=(1, 2)), StandardNormal([2]))
    check(theirs.log_prob(x, context), flow, x, context)
    if kind == "vector":
        samples = theirs.sample(5, context)
        assert samples.shape == (20, 5, 2)


def test_normflows(given):
    nf = pytest.importorskip("normflows", reason=REASON)
    layer, flow, x, context = given

    class Standard(nf.distributions.DiagGaussian):
        def log_prob(self, z, context=None):
            return super().log_prob(z)

    theirs = nf.ConditionalNormalizingFlow(
        Standard(2, trainable=False), [interop.to_normflows(layer, view=(1, 2))]
    )
    check(theirs.log_prob(x, context), flow, x, context)
    z, _ = theirs.flows[0].inverse(x, context=context)
    torch.testing.assert_close(theirs.flows[0](z, context=context)[0], x, atol=1e-5, rtol=1e-5)


def test_freia(kind):
    pytest.importorskip("FrEIA", reason=REASON)
    import FrEIA.framework as Ff

    from invertible_attention.interop.freia import FreiaAttention

    torch.manual_seed(0)
    shape = (3,) if kind == "vector" else (3, 4)
    inn = Ff.SequenceINN(4, 5)
    inn.append(FreiaAttention, cond=0, cond_shape=shape, heads=2, logdet=ia.Exact())
    layer = inn.module_list[0].bijection
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    x, c = torch.randn(6, 4, 5), torch.randn(6, *shape)
    inn(2 * x, c=[c])
    z, jac = inn(x, c=[c])
    expected, logdet = layer.forward_and_logdet(x, context=c)
    torch.testing.assert_close(z, expected)
    torch.testing.assert_close(jac, logdet)
    torch.testing.assert_close(inn(z, c=[c], rev=True)[0], x, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(inn(x, c=[c.roll(1, 0)])[0], z)


def test_pyro(given, kind):
    pytest.importorskip("pyro", reason=REASON)
    import pyro.distributions as dist

    layer, flow, x, context = given
    transform = interop.to_pyro_conditional(layer, view=(1, 2), context_dim=1 if kind == "vector" else 2)
    base = dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1)
    theirs = dist.conditional.ConditionalTransformedDistribution(base, [transform.inv]).condition(context)
    check(theirs.log_prob(x), flow, x, context)
    assert set(transform.parameters()) == set(layer.parameters())
    x = theirs.sample((20,))
    torch.testing.assert_close(theirs.log_prob(x), flow.log_prob(x, context=context), atol=1e-5, rtol=0)


@pytest.fixture
def padded():
    """Attention over five tokens given a vector, our density of three samples of unequal length, and a mask."""
    torch.manual_seed(0)
    layer = ia.InvertibleAttention(4, "embedded_gaussian", context_channels=2, logdet=ia.Exact()).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    x, c = torch.randn(3, 4, 5, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    mask = torch.arange(5) < torch.tensor([5, 2, 3])[:, None]
    x = x.masked_fill(~mask[:, None], 0.0)
    layer.initialize(x, mask=mask)
    z, logdet = layer.forward_and_logdet(x, context=c, mask=mask)
    return interop.MaskInContext(layer), x.flatten(1), torch.cat([c, mask.double()], 1), z.flatten(1), logdet


def theirs_of(library, bijection):
    """Return the two directions of a bijection in a library, as functions of an event and a context."""
    if library == "nflows":
        flow = interop.to_nflows(bijection, view=(4, 5))
        return flow.forward, flow.inverse
    if library == "normflows":
        flow = interop.to_normflows(bijection, view=(4, 5))
        return flow.inverse, flow.forward
    if library == "FrEIA":
        module = interop.to_freia(bijection, (20,), view=(4, 5), dims_c=[(7,)])

        def call(rev):
            def run(x, c):
                (y,), logdet = module([x], c=[c], rev=rev)
                return y, logdet

            return run

        return call(False), call(True)
    make = interop.to_zuko if library == "zuko" else interop.to_pyro_conditional
    lazy = make(bijection, view=(4, 5))

    def transform(c):
        return lazy(c) if library == "zuko" else lazy.condition(c)

    def both(t, x):
        y = t(x)
        return y, t.log_abs_det_jacobian(x, y)

    return lambda x, c: both(transform(c), x), lambda z, c: both(transform(c).inv, z)


@pytest.mark.parametrize("library", ["nflows", "normflows", "FrEIA", "zuko", "pyro"])
def test_a_mask_in_the_context(padded, library):
    pytest.importorskip(library, reason=REASON)
    bijection, x, context, z, logdet = padded
    forward, inverse = theirs_of(library, bijection)
    found, found_logdet = forward(x, context)
    torch.testing.assert_close(found, z)
    torch.testing.assert_close(found_logdet, logdet)
    back, back_logdet = inverse(z, context)
    torch.testing.assert_close(back, x, atol=1e-9, rtol=0)
    torch.testing.assert_close(back_logdet, -logdet, atol=1e-8, rtol=0)


@pytest.mark.parametrize("library", ["nflows", "normflows", "zuko"])
def test_foreign_chains_pass_context_only_to_parts_that_use_it(library):
    pytest.importorskip(library, reason=REASON)
    layer = ia.InvertibleAttention(4, logdet=ia.Exact()).double()
    x = torch.randn(3, 20, dtype=torch.float64)
    expected, logdet = layer.forward_and_logdet(x.view(3, 4, 5))
    forward, _ = theirs_of(library, layer)
    found, found_logdet = forward(x, torch.ones(3, 2))
    torch.testing.assert_close(found, expected.flatten(1))
    torch.testing.assert_close(found_logdet, logdet)
