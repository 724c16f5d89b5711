from __future__ import annotations

import pytest

from invertible_attention.experiments.density.comparison import at_time, compare, mean_and_error, table_text


def run(
    variant: str, seed: int, bits: float | None, *, seconds: float = 10.0, test: float | None = None
) -> dict:
    return {
        "variant": variant,
        "name": variant,
        "parameters": 100 if variant == "a" else 101,
        "configuration": {"seed": seed},
        "training": {"processor_seconds": seconds, "skipped_steps": 1},
        "curve": [{"processor_seconds": seconds, "test": bits if test is None else test}],
        "untrained": {"bits_per_dim": 8.0},
        "evaluation": {"bits_per_dim": bits, "exact": True},
        "samples": {"drawn": 4, "converged": 3},
    }


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


def test_equal_time_is_that_of_the_fastest_variant() -> None:
    runs = [run("a", 0, 3.0, seconds=10), run("b", 0, 2.0, seconds=40)]
    rows = compare(runs)
    assert rows[0]["at_equal_time"]["mean"] == pytest.approx(3.0)
    # a quarter of the way from 8 to 2
    assert rows[1]["at_equal_time"]["mean"] == pytest.approx(6.5)
    assert rows[1]["difference_at_equal_time"]["mean"] == pytest.approx(3.5)


def test_a_variant_that_did_not_train_stays_in_the_table() -> None:
    runs = [run("a", 0, 3.0), run("a", 1, 3.0), run("b", 0, None), run("b", 1, 2.5)]
    row = compare(runs)[1]
    assert row["bits_per_dim"]["values"] == [None, 2.5]
    study = {
        "base": {"steps": 5, "batch_size": 2},
        "data": {"title": "T", "train_images": 1, "test_images": 1, "shape": [1, 2, 2]},
        "seeds": 2,
        "rows": compare(runs),
    }
    text = table_text(study)
    assert "2.5000 (1 not finite)" in text
    assert "| a | 100 (1.000) |" in text


def test_curves_are_read_between_their_points_only() -> None:
    curve = [
        {"processor_seconds": 1.0, "test": 5.0},
        {"processor_seconds": 3.0, "test": 4.0},
        {"processor_seconds": 4.0, "test": None},
    ]
    assert at_time(curve, 2.0) == pytest.approx(4.5)
    assert at_time(curve, 0.5) is None
    assert at_time(curve, 3.5) is None
    assert at_time(curve, 9.0) is None
    assert mean_and_error([2.0]) == (2.0, None)
