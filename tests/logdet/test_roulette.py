from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from invertible_attention.logdet import Exact, PowerSeries, RussianRoulette, Series

# Samples are small here, and what is tested is the estimate.
roulette = partial(RussianRoulette, exact_dimensions=0)
ESTIMATORS = [
    roulette(exact_terms=2, continuation=0.6),
    roulette(exact_terms=0, continuation=0.7, distribution="rademacher"),
    roulette(exact_terms=3, tail="poisson", rate=3.0),
    roulette(exact_terms=1, continuation=0.6, probes=3),
]
GRADIENTS = {
    "memory-saving": {"gradient": "neumann", "memory_saving": True},
    "neumann": {"gradient": "neumann", "memory_saving": False},
    "autograd": {"gradient": "autograd"},
}


def repeat(sample, times):
    return sample.repeat(times, *[1] * (sample.ndim - 1))


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_value_is_unbiased(block, jacobian, assert_mean, estimator, training):
    branch, sample = block
    torch.manual_seed(2)
    full = jacobian(branch, sample).detach()
    truth = torch.linalg.slogdet(torch.eye(full.shape[0], dtype=full.dtype) + full).logabsdet
    estimator = replace(estimator, evaluation_exact_terms=4)
    x = repeat(sample, 64)
    # within a call all samples share the number of terms, so a call is one draw
    with torch.no_grad():
        draws = torch.stack([estimator(branch, x, training=training)[1].mean() for _ in range(320)])
    assert_mean(draws, truth, precision=0.05)


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("estimator", [ESTIMATORS[0], ESTIMATORS[3]], ids=str)
def test_gradient_is_unbiased(block, assert_mean, estimator, gradient):
    branch, sample = block
    torch.manual_seed(3)
    estimator = replace(estimator, **GRADIENTS[gradient])
    parameters = [p for name, p in branch.named_parameters() if name != "second.bias"]
    point = sample.clone().requires_grad_()
    truth = torch.autograd.grad(Exact()(branch, point)[1].sum(), [point, *parameters])
    x = repeat(sample, 64).requires_grad_()
    draws = []
    for _ in range(150):
        grad_x, *grads = torch.autograd.grad(estimator(branch, x, training=True)[1].mean(), [x, *parameters])
        draws.append(torch.cat([grad_x.sum(0).flatten(), *[g.flatten() for g in grads]]))
    assert_mean(torch.stack(draws), torch.cat([g.flatten() for g in truth]), precision=0.05)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_training_value_is_a_log_likelihood(assert_mean, gradient):
    """Peers return the surrogate of the Neumann gradient: 4/3 here, where the truth is 4 log 1.5 = 1.62."""
    torch.manual_seed(4)
    estimator = roulette(continuation=0.6, distribution="rademacher", **GRADIENTS[gradient])
    x = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    draws = torch.cat([estimator(lambda x: 0.5 * x, x, training=True)[1] for _ in range(4000)]).detach()
    assert_mean(draws, torch.tensor(4 * math.log(1.5), dtype=torch.float64), precision=0.05)


def test_mean_of_a_heavy_tailed_case(assert_mean):
    """A peer's roulette averages 1.19 on a branch whose log-determinant is 1.62."""
    torch.manual_seed(5)
    diagonal = torch.tensor([0.8, 0.6, 0.5, 0.169], dtype=torch.float64)
    truth = torch.log1p(diagonal).sum()
    assert truth.item() == pytest.approx(1.62, abs=5e-3)
    estimator = roulette(exact_terms=2, continuation=0.75)
    x = torch.zeros(512, 4, dtype=torch.float64)
    draws = torch.stack([estimator(lambda x: diagonal * x, x, training=True)[1].mean() for _ in range(1500)])
    assert_mean(draws, truth, precision=0.05)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_samples_are_weighted_individually(block, gradient):
    """Peers multiply all samples' gradients with the upstream gradient of sample 0."""
    branch, sample = block
    x = torch.cat([sample, 2 * sample, -sample])
    upstream = torch.tensor([0.0, 1.0, -2.0], dtype=torch.float64)
    weight = next(branch.parameters())

    def gradient_of(rows, weights):
        # the same probe for a sample alone and in the batch
        generator = torch.Generator().manual_seed(6)
        estimator = roulette(generator=generator, **GRADIENTS[gradient])
        _, logdet = estimator(lambda x: branch(x), x, training=True)
        return torch.autograd.grad(logdet[rows] @ weights, weight)[0]

    together = gradient_of([0, 1, 2], upstream)
    one_by_one = sum(gradient_of([i], upstream[i : i + 1]) for i in range(3))
    assert together.abs().max() > 1e-3
    torch.testing.assert_close(together, one_by_one)


def test_memory_saving_changes_neither_value_nor_gradient(block):
    branch, sample = block
    x = torch.cat([sample, 2 * sample]).requires_grad_()
    results = []
    for memory_saving in (True, False):
        torch.manual_seed(8)
        estimator = roulette(probes=2, memory_saving=memory_saving)
        value, logdet = estimator(branch, x, training=True)
        loss = value.sin().sum() + logdet @ torch.tensor([0.3, -2.0], dtype=torch.float64)
        results.append((value, logdet, *torch.autograd.grad(loss, [x, *branch.parameters()])))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("tail", [{"continuation": 0.7}, {"tail": "poisson", "rate": 1.5}])
def test_survival_function_matches_the_draws(tail):
    torch.manual_seed(9)
    estimator = roulette(**tail)
    drawn = torch.tensor([estimator._draw_tail(None) for _ in range(20_000)])
    for k in range(7):
        expected = estimator.survival(k)
        error = math.sqrt(expected * (1 - expected) / len(drawn)) + 1e-12
        assert abs((drawn >= k).double().mean().item() - expected) < 4 * error


def test_poisson_survival_is_accurate_in_the_tail():
    k = torch.arange(1.0, 40.0, dtype=torch.float64)
    expected = torch.special.gammainc(k, torch.full_like(k, 2.0))
    found = torch.tensor([roulette(tail="poisson").survival(int(i)) for i in k], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


def test_default_tail_follows_the_certificate():
    estimator = roulette()
    for c in (0.3, 0.729, 0.9, 0.98):
        assert estimator.has_finite_variance(c)
        assert estimator.has_finite_variance(torch.tensor(c))
    assert estimator.survival(1) == 0.5
    assert estimator.survival(1, 0.9) == pytest.approx(0.9**1.5)
    assert estimator.survival(1, math.inf) == 0.5
    assert not roulette(continuation=0.5).has_finite_variance(0.9)
    assert not roulette(tail="poisson").has_finite_variance(0.1)
    assert not estimator.has_finite_variance(1.0)


@pytest.mark.parametrize("c", [0.9999, 0.99999, 1 - 2**-24])
@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_a_bound_just_below_one_costs_a_thousand_terms_on_average(c, kind):
    torch.manual_seed(15)
    estimator = roulette()
    most = estimator.survival(1, kind(c))
    assert most / (1 - most) <= 1000
    drawn = torch.tensor([float(estimator._draw_tail(kind(c))) for _ in range(4000)])
    assert drawn.mean().item() == pytest.approx(most / (1 - most), rel=0.1)
    assert estimator.has_finite_variance(0.999)
    assert not estimator.has_finite_variance(kind(c))


def test_unbiased_with_a_bound_just_below_one(assert_mean):
    torch.manual_seed(16)
    diagonal = torch.tensor([0.99, -0.9, 0.5, 0.1], dtype=torch.float64)
    x = torch.zeros(512, 4, dtype=torch.float64)
    estimator = roulette(exact_terms=0)
    draws = torch.stack(
        [estimator(lambda x: diagonal * x, x, lipschitz=0.99999, training=True)[1].mean() for _ in range(60)]
    )
    assert_mean(draws, torch.log1p(diagonal).sum(), precision=0.05)


def test_more_exact_terms_in_evaluation():
    calls = []

    def linear(x):
        x = x.clone()
        x.register_hook(lambda _: calls.append(1))
        return 0.1 * x

    estimator = roulette(exact_terms=2, evaluation_exact_terms=9, continuation=1e-9)
    for training, expected in ((True, 2), (False, 9)):
        calls.clear()
        with torch.no_grad():
            estimator(linear, torch.zeros(1, 2), training=training)
        assert len(calls) == expected


def test_seed_and_generator_determine_the_result(block):
    branch, sample = block
    torch.manual_seed(10)
    first = roulette()(branch, sample)[1]
    torch.manual_seed(10)
    assert torch.equal(first, roulette()(branch, sample)[1])
    assert not torch.equal(first, roulette()(branch, sample)[1])

    state = torch.get_rng_state()
    one, two = (roulette(generator=torch.Generator().manual_seed(1))(branch, sample)[1] for _ in range(2))
    assert torch.equal(one, two)
    assert torch.equal(state, torch.get_rng_state())


def test_with_a_seed_evaluation_is_a_function_of_the_batch(block):
    branch, sample = block
    state = torch.get_rng_state()
    first, same = (roulette(seed=0)(branch, sample)[1] for _ in range(2))
    other = roulette(seed=1)(branch, sample)[1]
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    trained = [roulette(seed=0)(branch, sample, training=True)[1] for _ in range(2)]
    assert not torch.equal(*trained)


@pytest.mark.parametrize("estimator", [RussianRoulette, Series])
@pytest.mark.parametrize("seed", ["0", 0.5, True])
def test_a_seed_that_is_not_an_integer_is_refused(estimator, seed):
    # The hash of a string is another one in every process.
    with pytest.raises(ValueError, match=f"seed must be an integer or None, got {seed!r}"):
        estimator(seed=seed)


def test_with_seeds_the_mean_is_right(block):
    branch, sample = block
    truth = Exact()(branch, sample)[1]
    draws = torch.stack([roulette(seed=seed)(branch, sample)[1] for seed in range(200)])
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - truth).abs() < 4 * error).all()


@pytest.mark.parametrize("estimator", [roulette(), PowerSeries(), Exact()], ids=str)
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpointed_estimate_has_the_gradient_of_its_value(block, estimator, reentrant):
    branch, sample = block
    x = torch.cat([sample, 2 * sample]).requires_grad_()

    def logdet(x):
        return estimator(branch, x, training=True)[1]

    gradients = []
    for function in (logdet, lambda x: checkpoint(logdet, x, use_reentrant=reentrant)):
        torch.manual_seed(13)
        x.grad = None
        function(x).square().sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(gradients[1], gradients[0])


@pytest.mark.parametrize("estimator", [RussianRoulette, PowerSeries])
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_around_a_generator_is_refused(block, estimator, reentrant):
    branch, sample = block
    estimator = estimator(generator=torch.Generator().manual_seed(0))
    x = sample.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="generator=None"):
        checkpoint(
            lambda x: estimator(branch, x, training=True)[1], x, use_reentrant=reentrant
        ).sum().backward()


def test_a_hook_may_evaluate_with_a_generator(block):
    branch, sample = block
    estimator = roulette(generator=torch.Generator().manual_seed(0))
    x, seen = sample.clone().requires_grad_(), []

    def hook(_):
        with torch.no_grad():
            seen.append(estimator(branch, x)[1])

    x.register_hook(hook)
    branch(x).sum().backward()
    assert len(seen) == 1


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_vmap_shares_the_number_of_terms(block, assert_mean, randomness):
    branch, sample = block
    torch.manual_seed(14)
    full = Exact()(branch, sample)[1].detach()
    estimator = roulette(exact_terms=1, continuation=0.7)
    x = sample.expand(64, *sample.shape)
    with torch.no_grad():
        draws = torch.stack(
            [
                torch.vmap(lambda x: estimator(branch, x, training=True)[1], randomness=randomness)(x)
                for _ in range(320)
            ]
        )
    assert (draws[0].std() == 0) == (randomness == "same")
    if randomness == "different":
        assert_mean(draws.mean((1, 2)), full, precision=0.05)


def test_autocast_does_not_lower_the_precision():
    torch.manual_seed(11)
    linear = torch.nn.Linear(8, 8)
    x = torch.randn(4, 8, requires_grad=True)
    results = []
    for enabled in (False, True):
        torch.manual_seed(12)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            value, logdet = roulette()(linear, x, training=True)
            assert logdet.dtype == torch.float32
            # backward inside autocast evaluates the branch again
            grads = torch.autograd.grad(logdet.sum() + value.sum(), [x, linear.weight])
        results.append((value, logdet, *grads))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"exact_terms": -1}, "exact_terms must not be negative, got -1"),
        ({"evaluation_exact_terms": -2}, "evaluation_exact_terms must not be negative, got -2"),
        ({"tail": "zeta"}, "got 'zeta'"),
        ({"continuation": 1.0}, "continuation must lie between 0 and 1, got 1.0"),
        ({"rate": 0.0}, "rate must be positive, got 0.0"),
        ({"probes": 0}, "probes must be at least 1, got 0"),
        ({"distribution": "laplace"}, "got 'laplace'"),
        ({"gradient": "exact"}, "got 'exact'"),
    ],
)
def test_bad_arguments(arguments, words):
    with pytest.raises(ValueError, match=words):
        roulette(**arguments)


def test_few_dimensions_are_exact_in_evaluation():
    diagonal = torch.tensor([0.5, -0.3, 0.8])
    x = torch.randn(4, 3, requires_grad=True)

    def branch(x):
        return (diagonal * x).sin()

    value, logdet = RussianRoulette()(branch, x)
    expected_value, expected = Exact()(branch, x)
    torch.testing.assert_close((value, logdet), (expected_value, expected))
    torch.testing.assert_close(torch.autograd.grad(logdet.sum(), x), torch.autograd.grad(expected.sum(), x))
    assert torch.equal(logdet, RussianRoulette()(branch, x)[1])
    for estimator, training in ((RussianRoulette(), True), (RussianRoulette(exact_dimensions=2), False)):
        first, second = (estimator(branch, x, training=training)[1] for _ in range(2))
        assert not torch.equal(first, second)
