from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from invertible_attention.experiments.camouflage.configuration import Configuration
from invertible_attention.experiments.camouflage.findings import (
    audit_findings,
    claim_findings,
    compare,
    headline,
    pooled_deviation,
)
from invertible_attention.experiments.camouflage.metrics import Scores
from invertible_attention.experiments.camouflage.results import collect, datasets, rows
from invertible_attention.experiments.published import TABLE_4


def cell(model: str, seed: int, s: float, dataset: str = "CAMO", **values: Any) -> dict[str, Any]:
    """Return a network's result with a given S-measure."""
    curve = np.linspace(0, 1, 256)
    scores = Scores(0.1, s, 0.5, 0.6, 0.7, curve, curve)
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
    cell("inv-concatenation", 0, 0.70),
    cell("base", 0, 0.60),
    cell("concatenation", 1, 0.74),
    cell("concatenation", 0, 0.70),
    cell("inv-dot-product", 0, 0.60),
    cell("dot-product", 0, 0.71),
    cell("certified-concatenation", 0, 0.73),
]


def test_rows_are_in_the_tables_order_with_seeds_together() -> None:
    results = collect(CELLS)
    assert [row.name for row in rows(results)] == [
        "base",
        "concatenation",
        "inv-concatenation",
        "certified-concatenation",
        "dot-product",
        "inv-dot-product",
    ]
    row = rows(results)[1]
    assert row.text("CAMO", "s_measure") == "0.720 ± 0.028"
    assert row.text("NC4K", "s_measure") == "–"
    assert row.published("CAMO") == TABLE_4["Concatenation"]["CAMO"]
    summary = results["summary"][1]["scores"]["CAMO"]["s_measure"]
    assert summary["mean"] == pytest.approx(0.72)
    assert summary["deviation"] == pytest.approx(0.04 / math.sqrt(2))


def test_certified_rows_have_no_published_numbers() -> None:
    assert rows(collect(CELLS))[3].published("CAMO") is None


def test_datasets_are_in_the_papers_order() -> None:
    results = collect([cell("base", 0, 0.5, name) for name in ("mine", "NC4K", "CAMO")])
    assert datasets(results) == ["CAMO", "NC4K", "mine"]


def test_deviation_is_pooled_over_rows_with_several_seeds() -> None:
    found = rows(collect([cell("base", i, v) for i, v in enumerate((0.1, 0.2, 0.3))] + CELLS))
    # Base: 0.6 replaced by four values with seed 0 twice; concatenation: two values.
    base = [0.1, 0.6, 0.2, 0.3]
    expected = math.sqrt((3 * np.var(base, ddof=1) + np.var([0.7, 0.74], ddof=1)) / 4)
    assert pooled_deviation(found, "CAMO") == pytest.approx(expected)
    assert pooled_deviation(rows(collect([cell("base", 0, 0.5)])), "CAMO") is None


def test_invertible_rows_are_compared_with_ordinary_ones() -> None:
    comparisons = {c.form: c for c in compare(rows(collect(CELLS)), "CAMO")}
    assert set(comparisons) == {"InvConcatenation", "Certified Concatenation", "InvDot-product"}
    assert comparisons["InvConcatenation"].difference == pytest.approx(-0.02)
    assert comparisons["InvConcatenation"].within is True
    assert comparisons["Certified Concatenation"].within is True
    assert comparisons["InvDot-product"].within is False


def test_findings_say_what_the_numbers_say() -> None:
    (sentence,) = claim_findings(collect(CELLS))
    assert "InvDot-product -0.110 (more than one deviation below; 1 and 1 seed)" in sentence
    assert "InvConcatenation -0.020 (within one deviation; 1 and 2 seeds)" in sentence
    assert "is 0.028" in sentence
    single = [cell("gaussian", 0, 0.5), cell("inv-gaussian", 0, 0.5)]
    assert "no row has several seeds" in claim_findings(collect(single))[0]
    assert claim_findings(collect([cell("base", 0, 0.5)])) == []


def test_headline_names_the_best_row_and_counts() -> None:
    assert headline(collect(CELLS)) == (
        "Certified Concatenation has the best S on CAMO, 0.730; 2 of 3 invertible rows are no more than one "
        "deviation over seeds below the ordinary attention with the same response."
    )
    assert headline(collect([cell("base", 0, 0.5)])).startswith("Base reaches S 0.500, mean F 0.500")
    assert headline(collect([])) == "No network finished training."


def test_diverged_networks_are_counted_and_not_averaged() -> None:
    diverged = {
        "model": "inv-dot-product",
        "seed": 1,
        "images": "x",
        "configuration": {},
        "diverged": "the loss is nan",
    }
    results = collect([*CELLS, diverged])
    row = rows(results)[-1]
    assert (row.diverged, len(row.scored)) == (1, 1)
    assert row.text("CAMO", "s_measure") == "0.600"
    assert results["summary"][-1]["diverged"] == 1


def test_audits_are_told_in_sentences() -> None:
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
                cell("certified-gaussian", 0, 0.5, audit={"1": level, "2": level}),
                cell("inv-gaussian", 0, 0.5, audit={"1": level, "2": worse}),
                cell("base", 0, 0.5),
            ]
        )
    )
    assert found == [
        "InvGaussian: 5 of 8 feature maps recovered; local Lipschitz constant not finite, nothing is promised; "
        "2 maps have a second preimage, so no solver can recover them; 1 maps came back wrong without a warning.",
        "Certified Gaussian: 8 of 8 feature maps recovered; local Lipschitz constant at most 0.5, certified "
        "below 0.9.",
    ]
