from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from invertible_attention.experiments.reconstruct.results import Group, groups, histogram, labels


def cell(
    constraint: str, repeat: int, mse: float | None, *, largest: float = 0.5, normalization: str = "column"
) -> dict:
    return {
        "response": "dot_product",
        "constraint": constraint,
        "normalization": normalization,
        "repeat": repeat,
        "reconstruction": {
            "mse": mse,
            "ssim": 0.9,
            "v_score": 50.0 + repeat,
            "non_finite": 0 if mse is not None else 3,
        },
        "study": {"local_lipschitz": {"largest": largest}},
    }


def test_histogram_counts_every_image_once() -> None:
    mse = torch.tensor([0.0, 1e-20, 1.5e-3, 2e-3, 9.9, 1e9, float("inf"), float("nan")])
    counted = histogram(mse)
    counts, edges = counted["counts"], counted["log10_edges"]
    assert sum(counts) == 6
    assert counted["non_finite"] == 2
    assert counts[0] == 2
    assert counts[-1] == 1
    by_edge = dict(zip(edges, counts, strict=False))
    assert by_edge[-3.0] == 2  # 1e-3 … 10^-2.5
    assert by_edge[0.5] == 1  # 10^0.5 … 10
    assert len(edges) == len(counts) + 1


def test_repeats_are_grouped_with_ours_last() -> None:
    cells = [cell("certified", 1, 1e-9), cell("released", 1, 5.0), cell("certified", 2, 3e-9)]
    results = {"configuration": {"epochs": 2, "train_images": 5}, "cells": cells}
    (entries,) = groups(results).values()
    assert [(group.constraint, len(group.cells)) for group in entries] == [("released", 1), ("certified", 2)]
    assert labels(results) == ["authors’ code", "certified"]
    certified = entries[1]
    assert certified.seen == 10
    assert certified.mean("reconstruction", "mse") == 2e-9
    assert certified.values("reconstruction", "v_score") == [51.0, 52.0]


def test_normalizations_are_named_if_there_are_several() -> None:
    cells = [cell("released", 1, 1.0, normalization="row")]
    cells += [cell("certified", 1, 1.0, normalization=name) for name in ("column", "row")]
    settings = {"epochs": 1, "train_images": 1}
    assert labels({"configuration": settings, "cells": cells}) == [
        "authors’ code",
        "certified, column",
        "certified, row",
    ]


def test_nonfinite_mean_is_reported() -> None:
    cells = (cell("released", 1, None), cell("released", 2, 5.0))
    group = Group("dot_product", "released", "row", cells, "released")
    assert group.mean("reconstruction", "mse") is None
    assert group.largest("reconstruction", "mse") is None
    assert group.non_finite == 3


def test_largest_local_constant_is_reported() -> None:
    cells = (cell("released", 1, 1.0, largest=2.5), cell("released", 2, 1.0, largest=30.0))
    assert (
        Group("dot_product", "released", "row", cells, "").largest("study", "local_lipschitz", "largest")
        == 30.0
    )


def test_summary_of_published_results_matches_the_cells() -> None:
    files = sorted((Path(__file__).parents[3] / "results" / "reconstruct").glob("*/results.json"))
    if not files:
        pytest.skip("needs the repository's results folder")
    for file in files:
        results = json.loads(file.read_text(encoding="utf-8"))
        found = {key_of(g.summary()): g.summary() for members in groups(results).values() for g in members}
        for entry in results["summary"]:
            again = found[key_of(entry)]
            for name, value in entry.items():
                mean = value["mean"] if isinstance(value, dict) else value
                wanted = again[name]["mean"] if isinstance(value, dict) else again[name]
                assert mean == (pytest.approx(wanted) if isinstance(wanted, float) else wanted), (file, name)


def key_of(entry: dict) -> tuple[str, str, str]:
    return entry["response"], entry["constraint"], entry["normalization"]
