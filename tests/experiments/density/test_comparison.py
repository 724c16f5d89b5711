from __future__ import annotations

import math
from pathlib import Path

import pytest

from invertible_attention.experiments.density.comparison import compare, guarantee, read_curve
from invertible_attention.experiments.density.configuration import Configuration
from invertible_attention.experiments.density.figures import draw_differences, leave_out_diverged
from invertible_attention.experiments.density.tables import STUDY
from invertible_attention.experiments.metadata import run_metadata
from invertible_attention.experiments.report import mean_and_error
from invertible_attention.experiments.report.summary import run_markdown, write_run_page


def run(
    variant: str,
    seed: int,
    bits: float | None,
    *,
    seconds: float = 10.0,
    steps: int = 100,
    minutes: float | None = None,
    test: float | None = None,
) -> dict:
    return {
        "variant": variant,
        "name": variant,
        "parameters": 100 if variant in ("a", "none") else 101,
        "configuration": {
            "seed": seed,
            "model": "maf" if variant == "maf" else "i-resnet",
            "minutes": minutes,
            "steps": 100,
        },
        "training": {"processor_seconds": seconds, "steps": steps, "skipped_steps": 1},
        "curve": [{"step": steps, "processor_seconds": seconds, "test": bits if test is None else test}],
        "untrained": {"bits_per_dim": 8.0},
        "evaluation": {"bits_per_dim": bits, "exact": True},
        "samples": {"drawn": 4, "converged": 3},
    }


def study(rows: list[dict], cells: list[dict] | None = None) -> dict:
    return {
        "schema": STUDY.schema,
        "base": Configuration.choose().to_json(),
        "variants": [row["variant"] for row in rows],
        "draws": 4,
        "data": {"title": "T", "train_images": 1, "test_images": 1, "shape": [1, 2, 2], "levels": 17},
        "seeds": 2,
        "rows": rows,
        "cells": [cell_of(run(row["variant"], 0, None)) for row in rows] if cells is None else cells,
        "run": run_metadata(),
    }


def cell_of(run: dict) -> dict:
    """A run as a study stores it, with the fields a report needs."""
    score = {"standard_error": None, "sampling_error": None, "draws": 1, "images": 4, "not_finite": 0}
    score |= {"estimator": "Exact()", "exact": True, "spectral_radius": None}
    return run | {
        "seed": run["configuration"]["seed"],
        "run": run_metadata(),
        "training": run["training"] | {"seconds": 1.0},
        "untrained": score | run["untrained"],
        "evaluation": score | run["evaluation"],
        "samples": run["samples"] | {"walks": 0, "whole_walks": 0},
    }


def row_of(text: str, variant: str) -> list[str]:
    """The first row of a variant, of the comparison."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {variant} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_differences_are_paired_by_seed() -> None:
    runs = [run("a", 0, 3.0), run("a", 1, 4.0), run("b", 0, 2.9), run("b", 1, 3.8)]
    reference, row = compare(runs)
    assert reference["difference"]["values"] == [0.0, 0.0]
    assert row["difference"]["values"] == pytest.approx([-0.1, -0.2])
    assert row["difference"]["mean"] == pytest.approx(-0.15)
    # unpaired, the error would be 0.7
    assert row["difference"]["standard_error"] == pytest.approx(0.05)
    assert row["parameters_relative"] == pytest.approx(1.01)
    assert (row["skipped_steps"], row["failed_samples"]) == (2, 2)


def test_equal_time_is_the_fastest_variants_time() -> None:
    runs = [run("a", 0, 3.0, seconds=10), run("b", 0, 2.0, seconds=40)]
    rows = compare(runs)
    assert rows[0]["at_equal_time"]["mean"] == pytest.approx(3.0)
    # a quarter of the way from 8 to 2
    assert rows[1]["at_equal_time"]["mean"] == pytest.approx(6.5)
    assert rows[1]["difference_at_equal_time"]["mean"] == pytest.approx(3.5)


def test_where_time_ends_training_curves_are_read_at_the_steps_of_the_slowest() -> None:
    slow, fast = run("none", 0, 5.0, steps=10, minutes=1.0), run("maf", 0, 2.0, steps=40, minutes=1.0)
    rows = compare([slow, fast])
    assert rows[0]["at_equal_steps"]["mean"] == pytest.approx(5.0)
    # a quarter of the way from 8 to 2
    assert rows[1]["at_equal_steps"]["mean"] == pytest.approx(6.5)
    assert rows[1]["difference_at_equal_steps"]["mean"] == pytest.approx(1.5)
    assert "at_equal_time" not in rows[0]
    # Minutes that no run needed end nothing.
    whole = [run("none", 0, 5.0, minutes=60.0), run("maf", 0, 2.0, minutes=60.0, seconds=40.0)]
    assert compare(whole)[1]["at_equal_time"]["mean"] == pytest.approx(6.5)
    content = study(rows, [cell_of(slow), cell_of(fast)])
    content["base"] |= {"minutes": 1.0, "steps": 1_000_000}
    text = run_markdown(content, Path("a folder"))
    assert row_of(text, "maf")[1:6] == ["2.0000", "-3.0000", "6.5000", "+1.5000", "40"]
    assert "1 CPU minutes of batches" in text
    assert "1000000" not in text.partition("Settings")[0]
    # A table of an earlier version has no curves to read.
    content["rows"] = [{k: v for k, v in row.items() if not k.endswith("equal_steps")} for row in rows]
    assert row_of(run_markdown(content, Path("a folder")), "maf")[3:5] == ["–", "–"]


def test_failed_variant_stays_in_the_table() -> None:
    runs = [run("none", 0, 3.0), run("none", 1, 3.0), run("gaussian", 0, None), run("gaussian", 1, 2.5)]
    row = compare(runs)[1]
    assert row["bits_per_dim"]["values"] == [None, 2.5]
    text = run_markdown(study(compare(runs)), Path("a folder"))
    assert row_of(text, "gaussian")[1] == "2.5000 (1 not finite)"
    assert "100 (1.000)" in row_of(text, "none")
    untrained = compare(
        [run("none", 0, None), run("none", 1, None), run("gaussian", 0, 3.5), run("gaussian", 1, None)]
    )
    text = run_markdown(study(untrained), Path("a folder"))
    assert row_of(text, "gaussian")[1:3] == ["3.5000 (1 not finite)", "–"]


def test_uncertified_variants_are_not_called_certified() -> None:
    rows = compare([run("a", 0, 3.0), run("maf", 0, 3.0)])
    assert [guarantee(row) for row in rows] == ["certified", "–"]
    assert guarantee(rows[0] | {"spectral_radius": 0.5}) == "0.500"


def test_triangular_attention_is_not_called_certified() -> None:
    variants = ["none", "triangular", "triangular/affine", "concatenation/certified"]
    text = run_markdown(study(compare([run(variant, 0, 3.0) for variant in variants])), Path("a folder"))
    found = [row_of(text, variant)[-3] for variant in variants]
    assert found == ["certified", "by order", "by order", "certified"]


@pytest.mark.parametrize(
    ("samples", "shown"),
    [
        ({"round_trip_error": 0.25}, "0.25"),
        ({"round_trip_error": 3.0}, "3"),
        ({"round_trip_error": None}, "∞"),
        ({}, "–"),
    ],
)
def test_round_trip_error_is_shown(samples: dict, shown: str) -> None:
    rows = compare([run("triangular", 0, 3.0)])
    trained = run("triangular", 0, 3.0)
    cell = cell_of(trained | {"samples": trained["samples"] | samples})
    text = run_markdown(study(rows, [cell]), Path("a folder"))
    table = text[text.index("round trip, levels") :]
    line = next(line for line in table.splitlines() if "seed 0" in line)
    assert line.strip("| ").split("|")[-1].strip() == shown


def test_values_that_are_not_likelihoods_are_bracketed_and_not_compared() -> None:
    reference, row = compare([run("none", 0, 3.0), run("gaussian/relaxed", 0, 2.5)])
    row = row | {"exact": False, "spectral_radius": 1.2}
    text = run_markdown(study([reference, row]), Path("a folder"))
    _, bits, difference, _, timed, *_, radius, _, _ = row_of(text, "gaussian/relaxed")
    assert (bits, difference, timed, radius) == ("[2.5000]", "–", "–", "1.200")
    assert "In brackets:" in text
    for right in (row | {"exact": True}, row | {"spectral_radius": 0.9}):
        text = run_markdown(study([reference, right]), Path("a folder"))
        assert row_of(text, "gaussian/relaxed")[1] == "2.5000"
        assert "In brackets:" not in text


@pytest.mark.parametrize("points", [4, 6, 11])
def test_flat_curves_do_not_penalize_slower_variants(points: int) -> None:
    # The same curve over time, sampled at other times: a slower variant must not look worse.
    def curve(seconds: float) -> list[dict[str, float]]:
        times = [seconds * k / points for k in range(points + 1)]
        return [{"processor_seconds": t, "test": 3 + 2 * math.exp(-t / 3)} for t in times]

    expected = 3 + 2 * math.exp(-10 / 3)
    assert read_curve(curve(11.0), "processor_seconds", 10.0) == pytest.approx(expected, abs=0.01)


def test_curves_are_not_extrapolated() -> None:
    curve = [
        {"processor_seconds": 1.0, "test": 5.0},
        {"processor_seconds": 3.0, "test": 4.0},
        {"processor_seconds": 4.0, "test": None},
    ]
    assert read_curve(curve, "processor_seconds", 2.0) == pytest.approx(4.5)
    assert read_curve(curve, "processor_seconds", 0.5) is None
    assert read_curve(curve, "processor_seconds", 3.5) is None
    assert read_curve(curve, "processor_seconds", 9.0) is None
    assert mean_and_error([2.0]) == (2.0, None)


def test_study_with_a_failed_reference_has_a_report(tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    runs = [run("none", 0, None), run("none", 1, None), run("gaussian", 0, 3.0016), run("gaussian", 1, None)]
    cells = [r | {"curve": [{"step": 1, **point} for point in r["curve"]]} for r in runs]
    content = study(compare(runs), [])
    page = write_run_page(
        tmp_path / "study.html", content | {"cells": [cell_of(run) for run in cells]}
    ).read_text()
    assert "3.0016 (1 not finite)" in page
    assert draw_differences(content | {"rows": content["rows"][:1]}) is None


def test_diverged_curve_does_not_set_the_axis_range() -> None:
    from matplotlib.figure import Figure as Canvas

    runs = [run("a", 0, 3.0), run("b", 0, 4.0), run("c", 0, 1e27), run("d", 0, -1000.0)]
    axes = Canvas().subplots()
    leave_out_diverged(axes, runs)
    bottom, top = axes.get_ylim()
    assert 2.5 < bottom < 3
    assert 4 < top < 4.5
