"""Properties of every log-determinant estimator."""

from __future__ import annotations

import pytest
import torch

import invertible_attention as ia

ESTIMATORS = {
    "exact": ia.Exact(),
    "power series": ia.PowerSeries(terms=60),
    "roulette": ia.RussianRoulette(evaluation_exact_terms=40, exact_dimensions=0),
}


def layers() -> dict[str, ia.Bijection]:
    return {
        "attention": ia.InvertibleAttention(4),
        "convolution": ia.flows.Residual(ia.flows.LipschitzConvBranch(4, 6, (3, 3))),
        "linear": ia.flows.Residual(ia.flows.LipschitzLinearBranch(36, 8)),
    }


@pytest.mark.parametrize("name", layers())
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_layer_in_half_precision_has_the_logdet_of_its_weights_in_single(name, half, training, estimator):
    layer, x = layers()[name], torch.randn(2, 4, 3, 3).to(half)
    layer(x.float())
    layer.to(half).train(training)
    layer.logdet = ESTIMATORS[estimator]
    reference = layers()[name].train(training)
    reference.load_state_dict(layer.state_dict())
    reference.logdet = ESTIMATORS[estimator]
    results = []
    for block, point in ((layer, x), (reference, x.float())):
        torch.manual_seed(0)
        z, logdet = block.forward_and_logdet(point)
        assert z.dtype == point.dtype
        assert logdet.dtype == torch.float32
        logdet.sum().backward()
        results.append(logdet)
    # The norms are computed of the same weights; a convolution's constrained weight is rounded to its precision.
    torch.testing.assert_close(results[0], results[1], rtol=0.02 if name != "attention" else 1e-5, atol=1e-2)
    assert all(p.grad.isfinite().all() for p in layer.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", layers())
def test_replaced_estimator_takes_effect_immediately(name):
    layer = layers()[name].double()
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    layer.logdet = ia.PowerSeries(terms=1)
    layer.forward_and_logdet(x)
    layer.logdet = ia.Exact()
    first, second = layer.forward_and_logdet(x)[1], layer.forward_and_logdet(x)[1]
    assert torch.equal(first, second)
    flow = ia.flows.Flow(
        ia.flows.Sequential(layer, ia.flows.Flatten((4, 3, 3))), ia.flows.DiagonalGaussian(36).double()
    )
    known = flow.log_prob(x)
    assert torch.equal(known, flow.log_prob(x))
    layer.logdet = ia.RussianRoulette()
    assert not torch.equal(flow.log_prob(x), flow.log_prob(x))


@pytest.mark.parametrize("name", layers())
def test_blocks_without_an_estimator_answer_the_same_in_evaluation(name):
    layer, x = layers()[name], torch.randn(2, 4, 3, 3)
    layer.initialize(x)
    with torch.no_grad():
        assert torch.equal(*(layer.eval().forward_and_logdet(x)[1] for _ in range(2)))
        assert not torch.equal(*(layer.train().forward_and_logdet(x)[1] for _ in range(2)))


@pytest.mark.compiles
@torch.no_grad()
def test_replaced_estimator_takes_effect_in_a_compiled_function():
    layer = ia.InvertibleAttention(4, logdet=ia.PowerSeries(terms=1)).double()
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    layer(x)
    compiled = torch.compile(lambda x: layer.forward_and_logdet(x)[1], backend="eager")
    estimate = compiled(x)
    layer.logdet = ia.Exact()
    torch.testing.assert_close(compiled(x), layer.forward_and_logdet(x)[1])
    assert not torch.equal(compiled(x), estimate)
