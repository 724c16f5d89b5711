from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from invertible_attention.experiments.camouflage.comparison import compare, pooled_deviation, usual_deviation
from invertible_attention.experiments.camouflage.configuration import Configuration
from invertible_attention.experiments.camouflage.findings import audit_findings, claim_findings, headline
from invertible_attention.experiments.camouflage.metrics import Scores
from invertible_attention.experiments.camouflage.results import collect, datasets, rows


def cell(model: str, seed: int, s: float, dataset: str = "CAMO", **values: Any) -> dict[str, Any]:
    """Return a network's result with a given S-measure."""
    curve = np.linspace(0, 1, 256)
    scores = Scores(0.1, s, 0.5, 0.55, 0.6, 0.7, curve, curve)
    return {
        "model": model,
        "seed": seed,
        "images": "x",
        "configuration": Configuration().to_json(),
        "parameters": {"total": 10, "backbone": 5, "attention": 1, "decoder": 4},
        "training": {"steps": 4, "losses": [1.0, 0.5], "seconds": 7.0},
        "scores": {dataset: scores.to_json()},
        "audit": {},
        "run": {},
    } | values


CELLS = [
    cell("concatenation/relaxed", 0, 0.70),
    cell("none", 0, 0.60),
    cell("concatenation/ordinary", 1, 0.74),
    cell("concatenation/ordinary", 0, 0.70),
    cell("dot_product/relaxed", 0, 0.60),
    cell("dot_product/ordinary", 0, 0.71),
    cell("concatenation/certified", 0, 0.73),
]


def test_rows_follow_table_order_with_seeds_grouped() -> None:
    results = collect(CELLS)
    assert [row.name for row in rows(results)] == [
        "none",
        "concatenation/ordinary",
        "concatenation/relaxed",
        "concatenation/certified",
        "dot_product/ordinary",
        "dot_product/relaxed",
    ]
    row = rows(results)[1]
    assert row.text("CAMO", "s_measure") == "0.720 ± 0.028"
    assert row.text("NC4K", "s_measure") == "–"
    summary = results["summary"][1]["scores"]["CAMO"]["s_measure"]
    assert summary["mean"] == pytest.approx(0.72)
    assert summary["deviation"] == pytest.approx(0.04 / math.sqrt(2))


def test_datasets_follow_the_papers_order() -> None:
    results = collect([cell("none", 0, 0.5, name) for name in ("mine", "NC4K", "CAMO")])
    assert datasets(results) == ["CAMO", "NC4K", "mine"]


def test_deviation_is_pooled_over_rows_with_several_seeds() -> None:
    found = rows(collect([cell("none", i, v) for i, v in enumerate((0.1, 0.2, 0.3))] + CELLS))
    # Base: 0.6 replaced by four values with seed 0 twice; concatenation: two values.
    base = [0.1, 0.6, 0.2, 0.3]
    expected = math.sqrt((3 * np.var(base, ddof=1) + np.var([0.7, 0.74], ddof=1)) / 4)
    assert pooled_deviation(found, "CAMO") == pytest.approx(expected)
    assert pooled_deviation(rows(collect([cell("none", 0, 0.5)])), "CAMO") is None


def seeds(model: str, *values: float) -> list[dict[str, Any]]:
    """Return networks with given S-measures, one per seed."""
    return [cell(model, seed, value) for seed, value in enumerate(values)]


def diverged(model: str, seed: int) -> dict[str, Any]:
    """Return the result of a training that diverged."""
    return {
        "model": model,
        "seed": seed,
        "images": "x",
        "configuration": {},
        "diverged": "the loss is nan",
    }


def test_invertible_rows_are_compared_with_ordinary_ones() -> None:
    comparisons = {c.form: c for c in compare(rows(collect(CELLS)), "CAMO")}
    assert set(comparisons) == {"InvConcatenation", "Certified Concatenation", "InvDot-product"}
    assert comparisons["InvConcatenation"].difference == pytest.approx(-0.02)
    assert comparisons["InvConcatenation"].place == "within"
    assert comparisons["Certified Concatenation"].place == "within"
    assert comparisons["InvDot-product"].place == "below"


@pytest.mark.parametrize(
    ("shift", "place"),
    [(0.2, "above"), (0.0015, "above"), (0.0005, "within"), (-0.0005, "within"), (-0.0015, "below")],
)
def test_differences_beyond_one_deviation_count_in_both_directions(shift, place) -> None:
    ordinary, inverse = (0.699, 0.700, 0.701), (0.699 + shift, 0.700 + shift, 0.701 + shift)
    results = collect(seeds("gaussian/ordinary", *ordinary) + seeds("gaussian/relaxed", *inverse))
    (comparison,) = compare(rows(results), "CAMO")
    assert comparison.deviation.value == pytest.approx(0.001)
    assert comparison.place == place
    (sentence,) = claim_findings(results)
    assert ("within one deviation, 0.001" in sentence) == (place == "within")
    assert (f"more than one deviation {place}, 0.001" in sentence) == (place != "within")


def test_pairs_are_compared_with_their_own_deviation() -> None:
    steady = seeds("gaussian/ordinary", 0.70, 0.71) + seeds("gaussian/relaxed", 0.60, 0.61)
    wild = seeds("dot_product/ordinary", 0.2, 0.9) + seeds("dot_product/relaxed", 0.9, 0.1)
    alone, together = (compare(rows(collect(found)), "CAMO") for found in (steady, steady + wild))
    assert alone[0] in together
    assert alone[0].deviation.value == pytest.approx(0.01 / math.sqrt(2))
    assert alone[0].deviation.rows == ("InvGaussian", "Gaussian")
    assert (alone[0].place, alone[0].borrowed) == ("below", False)
    # If only one row of a pair has several seeds, its deviation is used.
    mixed = [cell("gaussian/relaxed", 0, 0.705), *seeds("gaussian/ordinary", 0.70, 0.72), *wild]
    by_form = {c.form: c for c in compare(rows(collect(mixed)), "CAMO")}
    assert by_form["InvGaussian"].deviation.rows == ("Gaussian",)
    assert by_form["InvGaussian"].deviation.value == pytest.approx(0.02 / math.sqrt(2))


def test_single_seed_pair_uses_the_pooled_deviation_and_reports_it() -> None:
    stable = seeds("none", 0.60, 0.61) + seeds("concatenation/ordinary", 0.70, 0.72)
    unstable = [*seeds("dot_product/relaxed", 0.1, 0.5), *seeds("concatenation/relaxed", 0.70, 0.70)]
    unstable.append(diverged("concatenation/relaxed", 2))
    single = [cell("gaussian/ordinary", 0, 0.70), cell("gaussian/relaxed", 0, 0.60)]
    found = collect([*stable, *unstable, *single])
    usual = usual_deviation(rows(found), "CAMO")
    assert usual.rows == ("Base", "Concatenation")
    assert usual.unstable == ("InvConcatenation", "InvDot-product")
    assert usual.value == pytest.approx(math.sqrt((0.01**2 / 2 + 0.02**2 / 2) / 2))
    comparison = next(c for c in compare(rows(found), "CAMO") if c.form == "InvGaussian")
    assert (comparison.deviation, comparison.borrowed) == (usual, True)
    assert claim_findings(found)[0].endswith(
        "InvGaussian -0.100 (more than one deviation below; 1 and 1 seed). InvGaussian: compared with 0.011, the "
        "deviation over seeds of Base and Concatenation, since this pair has one seed (InvConcatenation and "
        "InvDot-product omitted from it as unstable)."
    )


def test_shared_seeds_are_compared_in_pairs() -> None:
    ordinary = [cell("gaussian/ordinary", seed, s) for seed, s in ((0, 0.5), (1, 0.7), (2, 0.9), (7, 0.1))]
    inverse = [cell("gaussian/relaxed", seed, s) for seed, s in ((2, 0.93), (1, 0.72), (0, 0.51), (8, 0.2))]
    results = collect(ordinary + inverse)
    (comparison,) = compare(rows(results), "CAMO")
    mean, error = comparison.paired
    assert mean == pytest.approx(0.02)
    assert error == pytest.approx(0.01 / math.sqrt(3))
    assert comparison.difference == pytest.approx((0.51 + 0.72 + 0.93 + 0.2) / 4 - 0.55)
    assert "+0.020 ± 0.006 by the 3 seeds of both, mean and standard error" in claim_findings(results)[0]
    one = collect([ordinary[0], *inverse])
    assert compare(rows(one), "CAMO")[0].paired is None
    assert "±" not in claim_findings(one)[0]


def test_diverged_runs_are_reported() -> None:
    found = [
        *seeds("gaussian/ordinary", 0.70, 0.71, 0.72),
        *seeds("gaussian/relaxed", 0.70, 0.71),
        diverged("gaussian/relaxed", 2),
        *seeds("dot_product/ordinary", 0.70, 0.71),
        *(diverged("dot_product/relaxed", seed) for seed in (0, 1)),
        diverged("none", 0),
    ]
    results = collect(found)
    claim, total = claim_findings(results)
    assert "InvGaussian -0.005 (within one deviation, 0.009; 2 and 3 seeds; " in claim
    assert "mean and standard error, 1 and 0 diverged)" in claim
    assert "InvDot-product cannot be compared (0 and 2 seeds, 2 and 0 diverged)" in claim
    listed = "rainings that diverged: Base 1 of 1, InvDot-product 2 of 2, InvGaussian 1 of 3"
    assert total == f"T{listed}; means are over the others."
    assert headline(results) == (
        "S on CAMO is between 0.705 ± 0.007 (Dot-product) and 0.710 ± 0.010 (Gaussian); "
        "of 2 invertible rows, 1 within one deviation over seeds of "
        f"the ordinary attention with the same response, 0 above, 0 below and 1 that cannot be compared; t{listed}."
    )
    nothing = collect([diverged("none", 0)])
    assert headline(nothing) == "No network finished training: trainings that diverged: Base 1 of 1."
    assert claim_findings(nothing) == []


def test_findings_match_the_numbers() -> None:
    (sentence,) = claim_findings(collect(CELLS))
    assert "InvDot-product -0.110 (more than one deviation below; 1 and 1 seed)" in sentence
    assert "InvConcatenation -0.020 (within one deviation, 0.028; 1 and 2 seeds)" in sentence
    single = [cell("gaussian/ordinary", 0, 0.5), cell("gaussian/relaxed", 0, 0.5)]
    assert "no stable row has several seeds" in claim_findings(collect(single))[0]
    assert claim_findings(collect([cell("none", 0, 0.5)])) == []


def test_headline_states_range_and_counts() -> None:
    assert headline(collect(CELLS)) == (
        "S on CAMO is between 0.600 (Base) and 0.730 (Certified Concatenation); "
        "of 3 invertible rows, 2 within one deviation over "
        "seeds of the ordinary attention with the same response, 0 above and 1 below."
    )
    assert headline(collect([cell("none", 0, 0.5)])).startswith("Base reaches S 0.500, mean F 0.500")
    assert headline(collect([])) == "No network finished training."


def test_diverged_networks_are_counted_and_not_averaged() -> None:
    results = collect([*CELLS, diverged("dot_product/relaxed", 1)])
    row = rows(results)[-1]
    assert (row.diverged, len(row.scored)) == (1, 1)
    assert row.text("CAMO", "s_measure") == "0.600"
    assert results["summary"][-1]["diverged"] == 1


def test_audits_are_reported_as_sentences() -> None:
    level = {
        "images": 4,
        "recovered": 4,
        "silently_wrong": 0,
        "not_injective": 0,
        "local_lipschitz_largest": 0.5,
        "certificate": 0.9,
    }
    worse = level | {
        "recovered": 1,
        "silently_wrong": 1,
        "not_injective": 2,
        "local_lipschitz_largest": None,
        "certificate": None,
    }
    found = audit_findings(
        collect(
            [
                cell("gaussian/certified", 0, 0.5, audit={"1": level, "2": level}),
                cell("gaussian/relaxed", 0, 0.5, audit={"1": level, "2": worse}),
                cell("none", 0, 0.5),
            ]
        )
    )
    assert found == [
        "InvGaussian: 5 of 8 feature maps recovered; local Lipschitz constant not finite, nothing is promised; "
        "2 maps have a second preimage, so no solver can recover them; 1 maps came back wrong without a warning.",
        "Certified Gaussian: 8 of 8 feature maps recovered; local Lipschitz constant at most 0.5, certified "
        "below 0.9.",
    ]


@pytest.mark.parametrize(
    ("weights", "told"),
    [("/home/me/weights/small", "small"), ("timm/resnet50.tv_in1k", "timm/resnet50.tv_in1k"), (None, None)],
)
def test_weights_are_reported_without_local_paths(weights, told) -> None:
    settings = Configuration().to_json() | {"weights": weights}
    results = collect([cell("none", 0, 0.5, configuration=settings)])
    assert results["configuration"]["weights"] == told
    assert results["cells"][0]["configuration"]["weights"] == told
