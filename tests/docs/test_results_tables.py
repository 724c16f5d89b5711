"""Tables are written from results, whatever is there of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="docs/ is not part of this copy")
sys.path.insert(0, str(DOCS / "_extensions"))


@pytest.fixture(scope="module")
def tables():
    pytest.importorskip("sphinx", reason="needs the extra docs")
    import results_tables

    return results_tables


def cells(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_table_of_this_copy_is_well_formed(tables):
    for name in tables.TABLES:
        assert tables.UNKNOWN not in tables.render(name)
        grids = [part for part in tables.render(name).split("\n\n") if part.startswith("|")]
        for grid in grids:
            widths = {len(row) for row in cells(grid)}
            assert len(widths) == 1, name


def test_an_absent_folder_names_the_command(tables, tmp_path: Path):
    for name, table in tables.TABLES.items():
        text = tables.render(name, tmp_path)
        assert table.command in text
        assert "|" not in text


def test_pages_ask_for_tables_that_exist(tables):
    for page in DOCS.glob("*.md"):
        for line in page.read_text(encoding="utf-8").splitlines():
            if line.startswith("```{results}"):
                assert line.removeprefix("```{results}").strip() in tables.TABLES, page


def test_reconstruction_shows_what_the_file_says(tables, tmp_path: Path):
    source = ROOT / "results" / "reconstruct" / "cifar10" / "results.json"
    if not source.is_file():
        pytest.skip("results/ is not part of this copy")
    content = json.loads(source.read_text(encoding="utf-8"))
    entry = next(
        e for e in content["summary"] if (e["response"], e["constraint"]) == ("gaussian", "certified")
    )
    entry["v_score"]["mean"] = 12.34
    copy = tmp_path / "reconstruct" / "cifar10"
    copy.mkdir(parents=True)
    (copy / "results.json").write_text(json.dumps(content))
    row = next(
        row for row in cells(tables.render("reconstruction-cifar10", tmp_path)) if row[1] == "certified"
    )
    assert row[3] == "12.3"


def test_benchmark_tables_from_what_the_benchmark_writes(tables, tmp_path: Path):
    from invertible_attention.experiments.benchmark.summary import claims, growth

    record = {"response": "gaussian", "tokens": 64, "batch": 1, "backward": False, "fastest": 1.0, "turns": 3}
    content = {
        "times": [
            record | {"contender": "auto", "seconds": 0.002},
            record | {"contender": "reference", "seconds": 0.006},
        ],
        "memory": [record | {"contender": "auto", "bytes": 2_000_000}],
        "released": [],
        "growth": [],
    }
    content["growth"] = growth(content)
    content["claims"] = claims(content, 64)
    (tmp_path / "benchmark").mkdir()
    (tmp_path / "benchmark" / "benchmark.json").write_text(json.dumps(content))
    assert cells(tables.render("attention-times", tmp_path))[-1][3:] == ["2", "3 ×", "–"]
    assert cells(tables.render("attention-memory", tmp_path))[-1][4] == "2"
    assert "3 | ≥ 3.5 | **no**" in tables.render("attention-claims", tmp_path)


def test_density_and_detection_tables_from_what_the_experiments_write(tables, tmp_path: Path):
    spread = {"mean": 2.5, "standard_error": 0.01, "values": [2.5]}
    row = {
        "variant": "base", "parameters": 10, "parameters_relative": 1.0, "processor_seconds": 60.0,
        "bits_per_dim": spread, "difference": spread, "difference_at_equal_time": spread,
        "exact": True, "spectral_radius": None, "skipped_steps": 0, "failed_samples": 0,
    }  # fmt: skip
    study = {
        "base": {"steps": 1, "batch_size": 2},
        "data": {"title": "digits", "train_images": 3, "test_images": 4, "shape": [1, 8, 8]},
        "seeds": 1,
        "rows": [row],
    }
    (tmp_path / "density" / "digits").mkdir(parents=True)
    (tmp_path / "density" / "digits" / "study.json").write_text(json.dumps(study))
    assert "| base |" in tables.render("density", tmp_path)
    scores = {
        "CAMO": {name: {"mean": 0.5, "deviation": None} for name in ("s_measure", "mean_f", "mean_e", "mae")}
    }
    (tmp_path / "camouflage").mkdir()
    summary = [{"title": "Base", "seeds": [0, 1], "scores": scores}]
    (tmp_path / "camouflage" / "results.json").write_text(json.dumps({"summary": summary}))
    assert cells(tables.render("camouflage", tmp_path))[-1] == [
        "Base",
        "2",
        "0.500",
        "0.500",
        "0.500",
        "0.500",
    ]


def test_trained_attention_is_shown_with_the_images_it_gives_back(tables, tmp_path: Path):
    def level(recovered: int, largest: float) -> dict[str, Any]:
        return {
            "images": 8, "recovered": recovered, "local_lipschitz_largest": largest, "certificate": None,
        }  # fmt: skip

    content = {
        "summary": [{"model": "base", "title": "Base"}, {"model": "inv-gaussian", "title": "InvGaussian"}],
        "cells": [
            {"model": "base", "seed": 0, "audit": {}},
            {"model": "inv-gaussian", "seed": 3, "audit": {"1": level(2, 18.2), "4": level(8, 0.5)}},
        ],
        "run": None,
    }
    (tmp_path / "camouflage").mkdir()
    (tmp_path / "camouflage" / "results.json").write_text(json.dumps(content))
    assert cells(tables.render("camouflage-audits", tmp_path))[2:] == [
        ["InvGaussian", "3", "2 of 8", "8 of 8", "18.20", "–"]
    ]


def test_a_density_is_shown_before_and_after_its_training(tables, tmp_path: Path):
    def score(bits: float, exact: bool) -> dict[str, Any]:
        return {"bits_per_dim": bits, "sampling_error": 0.01, "exact": exact}

    content = {
        "name": "i-resnet",
        "parameters": 1234,
        "configuration": {"batch_size": 64},
        "training": {"steps": 1500, "seconds": 90.0},
        "data": {"title": "digits", "test_images": 360},
        "untrained": score(4.5, True),
        "evaluation": score(2.5, False),
        "samples": {"drawn": 64, "converged": 63},
        "run": None,
    }
    (tmp_path / "density" / "digits").mkdir(parents=True)
    (tmp_path / "density" / "digits" / "results.json").write_text(json.dumps(content))
    text = tables.render("density-run", tmp_path)
    for line in ("steps, images in each | 1,500, 64", "minutes | 1.5", "4.5000 ± 0.0100, exact"):
        assert line in text
    assert "2.5000 ± 0.0100, unbiased" in text
    assert "63 of 64" in text


def test_attacked_networks_have_a_row_each_with_their_largest_ratios(tables, tmp_path: Path):
    def block(network: str, ratio: float | None) -> dict:
        attack = {"ratio": 0.25, "ascents": 4}
        row = {"passed": True, "contraction": "certified", "silently_wrong": 0, "exceeds_certificate": 0}
        return row | {"network": network, "attack": {"input": attack, "weights": attack | {"ratio": ratio}}}

    content = {
        "schema": "invertible-attention/audit/1",
        "configuration": {"attack_steps": 40},
        "blocks": [block("a", 0.5), block("a", 0.9999999), block("b", None)],
        "run": {},
    }
    folder = tmp_path / "audit" / "trained" / "some"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(content))
    text = tables.render("audit-trained", tmp_path)
    assert cells(text)[2:] == [["a", "2", "16", "0.250000", "0.999999"], ["b", "1", "8", "0.250000", "∞"]]
    assert "1 CERTIFICATES WERE EXCEEDED" in text
    assert "40 steps per ascent" in text


def test_mutants_are_counted_by_what_was_judged_of_them(tables, tmp_path: Path):
    judgements = ["equivalent: the same", "no matter: a message", "equivalent: the same too"]
    found = {
        "mutants": 90,
        "tried": 10,
        "killed": 7,
        "survivors": [{"judgement": text} for text in judgements],
    }
    (tmp_path / "trust").mkdir()
    modules = {
        "src/invertible_attention/solvers/base.py": found,
        "src/invertible_attention/lipschitz/gram.py": found,
    }
    (tmp_path / "trust" / "mutation.json").write_text(json.dumps({"modules": modules, "seed": 0, "run": {}}))
    rows = cells(tables.render("mutation", tmp_path))
    assert rows[2] == ["`solvers/base.py`", "90", "10", "7", "2", "1"]
    assert rows[-1] == ["**all**", "180", "20", "14", "4", "2"]


def test_kills_are_counted_by_where_they_fell(tables, tmp_path: Path):
    kills = [
        {"fraction": 0.1, "stage": "training", "begun": []},
        {"fraction": 0.2, "stage": "training", "begun": [".training.ckpt.aaaaaaaa.ckpt"]},
        {"fraction": 0.9, "stage": "report", "begun": [".training.ckpt.aaaaaaaa.ckpt"]},
    ]
    content = {
        "experiment": "density",
        "seed": 7,
        "moments": 3,
        "runs": 2,
        "mismatches": ["run 2: other weights in model.safetensors"],
        "stages": {"start": 0, "training": 2, "evaluation": 0, "report": 1},
        "seconds_whole": 12.3,
        "kills": kills,
        "run": {"time": "2026-01-01T00:00:00+00:00"},
    }
    (tmp_path / "trust").mkdir()
    (tmp_path / "trust" / "kills-density.json").write_text(json.dumps(content))
    text = tables.render("kills", tmp_path)
    head, _, row = cells(text)
    assert dict(zip(head, row, strict=True)) == {
        "killed": "density",
        "kills": "3",
        "start": "0",
        "training": "2",
        "evaluation": "0",
        "report": "1",
        "while writing a file": "1",
        "runs": "2",
        "mismatches": "1",
    }
    assert "took 12 s, seed 7, measured 2026-01-01" in text


def test_coverage_is_shown_by_package(tables, tmp_path: Path):
    part = {"lines": 1000, "lines_percent": 95.04, "branches": 10, "branches_percent": 100.0}
    content = {"total": part, "packages": {"solvers": part | {"lines": 20}}, "run": {}, "note": "a part"}
    (tmp_path / "trust").mkdir()
    (tmp_path / "trust" / "coverage.json").write_text(json.dumps(content))
    assert "*A part.*" in tables.render("coverage", tmp_path)
    rows = cells(tables.render("coverage", tmp_path))
    assert rows[2] == ["**all**", "1,000", "95.0 %", "10", "100.0 %"]
    assert rows[3] == ["solvers", "20", "95.0 %", "10", "100.0 %"]
