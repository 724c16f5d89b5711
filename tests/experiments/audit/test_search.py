"""The search measures exactly, approaches the bound, and detects a wrong bound."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from invertible_attention import Certified
from invertible_attention.experiments.audit.attack import jacobian_norm
from invertible_attention.experiments.audit.configurations import (
    DTYPES,
    SCALES,
    STRATA,
    draw_population,
    draw_structure,
)
from invertible_attention.experiments.audit.search import EDGES, Measure, histogram, search_group
from invertible_attention.experiments.audit.settings import Campaign

SMALL = Campaign(group_size=16, ascents=4, steps=5, seed=1)


def layer_of(structure, parameters, index):
    layer = structure.build().to(DTYPES[structure.dtype])
    state = {name.removeprefix("layer."): value[index] for name, value in parameters.items()}
    layer.load_state_dict(layer.state_dict() | state)
    return layer


@settings(deadline=None, max_examples=12)
@given(seed=st.integers(0, 1000), group=st.integers(0, 2000))
def test_bounds_and_constants_match_the_layers(seed, group):
    structure = draw_structure(seed, group)
    population = draw_population(structure, seed, group, size=4, inputs=1)
    measure = Measure(structure)
    bounds = measure.bounds(population.parameters)
    constants = measure.constants(population.parameters, population.inputs[:, 0])
    for index in range(4):
        layer = layer_of(structure, population.parameters, index)
        torch.testing.assert_close(bounds[index], layer.lipschitz_bound().double(), rtol=1e-5, atol=0)
        if structure.dtype == "float64":
            exact = jacobian_norm(layer, population.inputs[index])
            torch.testing.assert_close(constants[index], exact[0], rtol=1e-9, atol=1e-300)


def test_all_combinations_are_visited():
    fields = ("response", "normalization", "heads", "bias", "prior", "dtype")
    for seed, round_ in ((0, 0), (3, 1)):
        groups = range(round_ * len(STRATA), (round_ + 1) * len(STRATA))
        structures = [draw_structure(seed, group) for group in groups]
        assert {tuple(getattr(s, name) for name in fields) for s in structures} == set(STRATA)
    assert draw_structure(0, 5) == draw_structure(0, 5)


def test_scales_span_twelve_orders_of_magnitude():
    structure = dataclasses.replace(draw_structure(0, 0), response="embedded_gaussian", bias=True)
    population = draw_population(structure, 0, 0, size=400, inputs=2)
    for name in ("value_weight", "out_weight"):
        sizes = population.parameters[f"layer.branch.{name}"].flatten(1).norm(dim=1).log10()
        assert sizes.min() < 1 - SCALES
        assert sizes.max() > SCALES - 1
    radius = population.parameters["layer.branch.log_radius"] / torch.tensor(10.0).log()
    assert radius.min() < 1 - SCALES
    assert radius.max() > SCALES - 1
    norms = population.inputs.norm(dim=2).flatten(2).amax(-1).log10() - radius[:, None]
    assert norms.min() < 1 - SCALES
    assert norms.max() > SCALES - 1


@pytest.mark.parametrize("group", [0, 1, 2])
def test_groups_are_reproducible_and_stay_below_their_bounds(group):
    found, again = (search_group(dataclasses.replace(SMALL, seed=7), group) for _ in range(2))
    assert found.to_json() == again.to_json()
    assert found.violations == []
    assert found.not_finite == 0
    assert sum(found.histogram) == found.configurations == 16
    assert 0.2 < found.random <= found.ascended <= 1 + 1e-12
    assert found.constant / found.bound == pytest.approx(found.ascended)


def test_gradient_ascent_tightens_the_ratio():
    structures = {group: draw_structure(1, group) for group in range(40)}
    group = next(g for g, s in structures.items() if s.dtype == "float64" and s.tokens > 1)
    found = search_group(dataclasses.replace(SMALL, steps=30), group)
    assert found.ascended > 0.99
    assert 1 - found.ascended < (1 - found.random) / 2


@pytest.mark.parametrize("dtype", DTYPES)
def test_wrong_bound_is_detected(dtype, monkeypatch):
    group = next(group for group in range(100) if draw_structure(1, group).dtype == dtype)
    promise = Certified.lipschitz_bound
    monkeypatch.setattr(Certified, "lipschitz_bound", lambda self, log_bound: promise(self, log_bound) * 0.9)
    found = search_group(SMALL, group)
    assert found.violations
    assert all(1 < ratio < 1.2 for _, ratio in found.violations)
    assert found.ascended == max(ratio for _, ratio in found.violations)
    assert found.worst.keys() == {"x"} | {
        f"layer.{name}" for name, _ in found.structure.build().named_parameters()
    }


def test_nonfinite_ratios_are_counted_separately_from_the_maximum(monkeypatch):
    promise = Certified.lipschitz_bound

    def broken(self, log_bound):
        return torch.where((100 * log_bound).floor() % 2 == 0, promise(self, log_bound), torch.nan)

    monkeypatch.setattr(Certified, "lipschitz_bound", broken)
    found = search_group(SMALL, 0)
    assert 0 < found.not_finite < 16
    assert sum(found.histogram) == 16 - found.not_finite
    assert 0 < found.ascended <= 1


def test_histogram_counts_ratios_between_the_edges():
    ratios = torch.tensor([0.0, 5e-4, 0.05, 0.95, 0.9995, 1.0, 1.5], dtype=torch.float64)
    counts = histogram(ratios)
    assert len(counts) == len(EDGES)
    assert sum(counts) == 7
    assert counts[0] == 2
    assert counts[-1] == 1  # above one
    assert counts[-2] == 2  # 0.999 to 1
