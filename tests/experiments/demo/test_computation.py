from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from invertible_attention.experiments.data import to_pixels
from invertible_attention.experiments.demo.attention_map import attention_row, attention_weights, token_of
from invertible_attention.experiments.demo.computation import RECOVERED, Outcome, compute
from invertible_attention.experiments.demo.options import CONSTRAINTS, NORMALIZATIONS, Options
from invertible_attention.experiments.demo.words import attention_words, headline, honesty, table
from invertible_attention.experiments.errors import ExperimentError
from invertible_attention.experiments.published import RESPONSES
from invertible_attention.experiments.reconstruct.network import block_of

from .conftest import drawn_picture


@pytest.mark.parametrize(
    ("response", "normalization"),
    [*((response, "column") for response in RESPONSES), ("concatenation", "row"), ("gaussian", "all")],
)
def test_certified_network_reconstructs_every_picture(response: str, normalization: str) -> None:
    options = Options(response, normalization, size=32, steps=1)
    side = compute(drawn_picture(), options).chosen
    assert side.converged
    assert side.recovered
    assert side.local_lipschitz <= side.certificate < 1
    assert side.mse < 1e-4


def test_reported_values_match_the_solve(outcome: Outcome) -> None:
    for side in (outcome.chosen, outcome.other):
        squeeze, block = side.network[0], block_of(side.network)
        with torch.no_grad():
            assert torch.allclose(squeeze.inverse(block(squeeze(outcome.x))), side.latent)
        difference = to_pixels(side.reconstruction.double()) - to_pixels(outcome.x.double())
        assert side.mse == pytest.approx(difference.square().mean().item())
        assert side.error.max().item() == pytest.approx(difference.abs().max().item())
        assert side.recovered == (side.mse < RECOVERED)
        assert side.steps == 3
    assert outcome.chosen.error_bound >= (outcome.chosen.reconstruction - outcome.x).norm()
    assert math.isinf(outcome.other.error_bound)
    assert math.isinf(outcome.other.certificate)
    assert outcome.other.evaluations == 50


def test_every_solver_reduces_the_residual(outcome: Outcome) -> None:
    curves = outcome.chosen.curves
    assert set(curves) == {"picard", "anderson", "newton-krylov"}
    for curve in curves.values():
        assert curve[0] is not None
        assert curve[-1] is not None
        assert curve[-1] <= 1e-6 < curve[0]


def test_equal_choices_give_equal_outcomes() -> None:
    first, second = (compute(drawn_picture(), Options(size=32, steps=2, seed=5)) for _ in range(2))
    assert torch.equal(first.chosen.reconstruction, second.chosen.reconstruction)
    assert torch.equal(first.other.latent, second.other.latent)
    third = compute(drawn_picture(), Options(size=32, steps=2, seed=6))
    assert not torch.equal(first.chosen.latent, third.chosen.latent)


def test_progress_is_reported() -> None:
    told: list[float] = []
    compute(drawn_picture(), Options(size=32, steps=2), lambda share, what: told.append(share))
    assert told == sorted(told)
    assert 0 <= told[0] < told[-1] <= 1


def test_released_is_compared_with_certified() -> None:
    result = compute(drawn_picture(), Options(constraint="released", size=32, steps=0))
    assert (result.chosen.constraint, result.other.constraint) == ("released", "certified")
    assert result.chosen.steps == 0
    assert "not trained" in honesty(result)
    assert " and ".join(result.options.variants) in honesty(result)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("response", RESPONSES)
def test_map_matches_the_networks_attention(response: str, normalization: str) -> None:
    result = compute(drawn_picture(), Options(response, normalization, size=32, steps=0))
    network, x = result.chosen.network.double(), result.x.double()
    branch = block_of(network).branch
    weights = attention_weights(network, x)
    bound = branch.bind()
    tokens = network[0](x).flatten(2).mT[0]
    seen = tokens * (branch.radius / tokens.norm(dim=1, keepdim=True)).clamp_max(1)
    gain = branch.constraint.gain(bound.scale.log_bound - (math.log(256) if normalization == "all" else 0))
    expected = weights @ F.linear(seen, bound.value_weight) @ bound.out_weight.mT * gain
    assert torch.allclose(expected.mT.reshape(1, 12, 16, 16), branch(network[0](x)), atol=1e-12)
    row = attention_row(network, x, 5, 9)
    assert torch.allclose(row.flatten(), weights[2 * 16 + 4] / weights.mean())


@pytest.mark.parametrize("response", RESPONSES)
def test_map_matches_the_released_networks_attention(response: str) -> None:
    result = compute(drawn_picture(), Options(response, constraint="released", size=32, steps=0))
    network, x = result.chosen.network.double(), result.x.double()
    branch = block_of(network).branch
    if response == "gaussian":
        with torch.no_grad():
            branch.gate.fill_(0.5)
    tokens = network[0](x).flatten(2).mT
    received = attention_weights(network, x) @ branch.value(tokens)
    expected = branch.gate.tanh() * received if response == "gaussian" else branch.out(received)
    assert torch.allclose(expected.mT.reshape(1, 12, 16, 16), branch(network[0](x)), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"response": "other"}, "response must be one of gaussian, .*, got 'other'"),
        ({"constraint": "none"}, "constraint must be one of"),
        ({"normalization": "count"}, "normalization must be one of"),
        ({"size": 33}, "size must be one of 32, 64, 96, got 33"),
        ({"steps": -1}, "steps must be a whole number from 0 to 200, got -1"),
        ({"seed": 2**40}, "seed must be a whole number"),
        ({"seed": 0.5}, "got 0.5"),
    ],
)
def test_unknown_choices_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ExperimentError, match=message):
        Options(**values)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("constraint", CONSTRAINTS)
def test_text_matches_the_numbers(outcome: Outcome, constraint: str) -> None:
    side = replace(outcome.other, constraint=constraint, certificate=math.inf)
    came_back = replace(side, mse=1e-3, converged=True, local_lipschitz=2.0)
    folded = replace(side, mse=50.0, converged=True)
    stuck = replace(side, mse=math.inf, converged=False, residual=math.inf)
    said = [headline(replace(outcome, other=other))[1] for other in (came_back, folded, stuck)]
    if constraint == "certified":
        assert "came back" in said[0]
        assert all("did NOT come back" in sentence for sentence in said[1:])
    else:
        assert "no contraction here" in said[0]
        assert "Nothing promises it" in said[0]
        assert "FAILED" in said[1]
        assert "another picture" in said[1]
        assert "has not converged (relative residual ∞)" in said[2]
    assert "no promise" in {row[0]: row[2] for row in table(outcome)}.values()


def test_early_end_of_training_is_reported(outcome: Outcome) -> None:
    assert "training ended" not in honesty(outcome)
    early = replace(outcome, other=replace(outcome.other, steps=1))
    assert "1 steps (authors’ code; training ended" in honesty(early)


def test_a_pixel_belongs_to_its_block() -> None:
    blocks = {token_of(row, column, (6, 4)) for row in range(6) for column in range(4)}
    assert blocks == {(i, j) for i in range(3) for j in range(2)}


def test_map_has_a_text_description() -> None:
    shares = torch.tensor([[1.0, -0.5], [2.5, 1.0]])
    words = attention_words(shares, (0, 1))
    assert "row 0, column 2 takes 2.5 times an even share" in words
    assert "at row 2, column 0, and -0.5 times" in words
    assert "25 % of its weights are negative" in words
