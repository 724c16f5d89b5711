from __future__ import annotations

import math

import pytest
import torch

from invertible_attention import Exact, RussianRoulette
from invertible_attention.experiments.density.evaluation import Score, evaluation_estimator, score
from invertible_attention.experiments.density.radius import MeasureRadius
from invertible_attention.flows import Dequantize, Flatten, Flow, Logit, Residual, Sequential, Uniform


def test_standard_error_of_draws_and_sampling_error_of_images() -> None:
    torch.manual_seed(0)
    draws, images = 400, 30
    offsets = torch.randn(images, dtype=torch.float64)
    values = offsets + 0.5 * torch.randn(draws, images, dtype=torch.float64)
    result = Score(values, "", exact=True)
    assert result.standard_error == pytest.approx(0.5 / math.sqrt(draws * images), rel=0.05)
    assert result.sampling_error == pytest.approx(offsets.std().item() / math.sqrt(images), rel=0.05)
    assert abs(result.mean - offsets.mean().item()) < 4 * result.standard_error


def test_nonfinite_values_are_counted_not_averaged() -> None:
    values = torch.ones(2, 3, dtype=torch.float64)
    values[1, 2] = math.inf
    stored = Score(values, "x", exact=False).to_json()
    assert stored["bits_per_dim"] is None
    assert stored["not_finite"] == 1
    assert Score(torch.ones(1, 3), "x", exact=False).to_json()["standard_error"] is None


def test_uniform_density_has_log2_levels_bits_per_dimension() -> None:
    flow = Flow(Sequential(Dequantize(17), Flatten((1, 2, 2))), Uniform(4)).train()
    images = torch.randint(0, 17, (10, 1, 2, 2), dtype=torch.uint8)
    reported = []
    result = score(flow, images, estimator=Exact(), draws=2, seed=0, batch_size=4, report=reported.append)
    assert result.values.shape == (2, 10)
    assert result.mean == pytest.approx(math.log2(17), rel=1e-6)
    assert result.to_json()["exact"] is True
    assert score(flow, images, estimator=RussianRoulette(), draws=2, seed=0).to_json()["exact"] is False
    assert flow.training
    assert reported == [1, 2, 3, 4, 5, 6]


def test_draws_differ_and_seeds_reproduce() -> None:
    flow = Flow(Sequential(Dequantize(17), Logit(0.05), Flatten((1, 2, 2))), Uniform(4, -9, 9))
    images = torch.randint(0, 17, (10, 1, 2, 2), dtype=torch.uint8)
    state = torch.get_rng_state()
    one, two, three = (
        score(flow, images, estimator=Exact(), draws=2, seed=seed).values for seed in (0, 0, 1)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, three)
    assert not torch.equal(one[0], one[1])
    assert torch.equal(state, torch.get_rng_state())


def test_spectral_radius_matches_the_jacobian_and_is_computed_without_certificate_only() -> None:
    matrix = torch.tensor([[0.0, 1.3], [-1.3, 0.0]], dtype=torch.float64)  # eigenvalues ±1.3i
    measuring = MeasureRadius(Exact())
    x = torch.zeros(3, 2, dtype=torch.float64)
    _, logdet = measuring(lambda x: x @ matrix.mT, x, lipschitz=math.inf)
    torch.testing.assert_close(measuring.radii[0], torch.full((3,), 1.3, dtype=torch.float64))
    torch.testing.assert_close(logdet, torch.full((3,), math.log(1 + 1.69), dtype=torch.float64))
    measuring(lambda x: 0.5 * x, x, lipschitz=0.5)
    assert len(measuring.radii) == 1


def test_score_reports_the_spectral_radius_of_uncertified_flows() -> None:
    torch.manual_seed(0)
    images = torch.randint(0, 17, (6, 4, 1, 1), dtype=torch.uint8)

    def bits(lipschitz: float | None) -> Score:
        branch = torch.nn.Conv2d(4, 4, 1, bias=False)
        torch.nn.init.dirac_(branch.weight)
        branch.weight.data *= 0.4
        block = Residual(branch, lipschitz=lipschitz)
        flow = Flow(Sequential(Dequantize(17), block, Flatten((4, 1, 1))), Uniform(4, -9, 9))
        return score(flow, images, estimator=Exact(), draws=2, seed=0)

    assert bits(0.5).radius is None
    assert bits(math.inf).radius == pytest.approx(0.4, rel=1e-4)
    assert bits(math.inf).to_json()["spectral_radius"] == pytest.approx(0.4, rel=1e-4)


def test_few_dimensions_are_evaluated_exactly() -> None:
    otherwise = RussianRoulette(probes=2)
    assert isinstance(evaluation_estimator(64, otherwise), Exact)
    assert evaluation_estimator(3 * 32 * 32, otherwise) is otherwise
