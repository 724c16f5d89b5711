from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from invertible_attention.cli import main
from invertible_attention.experiments.errors import ExperimentError
from invertible_attention.experiments.published import RESPONSES
from invertible_attention.experiments.reconstruct import run as run_module
from invertible_attention.experiments.reconstruct.configuration import Configuration
from invertible_attention.experiments.reconstruct.network import block_of, build_network
from invertible_attention.experiments.reconstruct.results import SCHEMA
from invertible_attention.experiments.study import engine

from ..conftest import blank_figures
from .conftest import TINY, Finished, start

pytestmark = pytest.mark.slow

SMALL = replace(
    TINY,
    variants=("dot_product/certified", "dot_product/certified/row", "dot_product/released"),
    repeats=1,
)

CELL = {
    "response": str,
    "constraint": str,
    "normalization": str,
    "repeat": int,
    "seed": int,
    "images": str,
    "training": {"steps": int, "first_loss": float, "last_loss": float, "seconds": float},
    "reconstruction": {
        "images": int,
        "mse": float | None,
        "mse_median": float | None,
        "mse_max": float | None,
        "mse_clamped": float,
        "ssim": float,
        "ssim_clamped": float,
        "v_score": float,
        "v_score_clamped": float,
        "non_finite": int,
        "histogram": {"log10_edges": list, "counts": list, "non_finite": int},
    },
    "inverse": {
        "evaluations_mean": float,
        "evaluations_max": int,
        "converged_share": float,
        "elsewhere_share": float,
        "residual_median": float | None,
        "residual_max": float | None,
        "error_max": float | None,
        "error_bound_max": float | None,
        "error_bound_holds_share": float | None,
        "seconds": float,
    },
    "study": {
        "images": int,
        "lipschitz_bound": float | None,
        "local_lipschitz": {"median": float | None, "largest": float | None, "above_one_share": float},
        "solvers": {
            name: {"median": list, "largest": list} for name in ("anderson", "picard", "newton-krylov")
        },
        "picard_mse": {"median": list, "largest": list},
    },
    "run": {"time": str, "commit": str | None, "versions": dict, "machine": dict, "seconds": float},
}


def check(value: Any, schema: Any, path: str = "cell") -> None:
    if isinstance(schema, dict):
        assert set(value) >= set(schema), path
        for name, inner in schema.items():
            check(value[name], inner, f"{path}.{name}")
    else:
        assert isinstance(value, schema), f"{path} is {value!r}"


def strip(result: dict[str, Any]) -> dict[str, Any]:
    """Remove fields that may differ between equal runs: time, machine, seconds."""
    plain = json.loads(json.dumps(result))
    del plain["run"], plain["training"]["seconds"], plain["inverse"]["seconds"]
    return plain


def check_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Compare up to rounding: the estimate of a constant depends on memory alignment."""
    found = [strip(cell) for cell in found]
    for cell, other in zip(found, expected, strict=True):
        other = json.loads(json.dumps(other))
        local, same = cell["study"].pop("local_lipschitz"), other["study"].pop("local_lipschitz")
        assert local == pytest.approx(same, rel=1e-5)
        assert cell == other


def test_results_json_has_its_schema(finished: Finished) -> None:
    stored = json.loads((finished.folder / "results.json").read_text(), parse_constant=pytest.fail)
    assert stored == finished.results
    assert stored["schema"] == SCHEMA
    assert Configuration(**stored["configuration"]) == TINY
    assert len(stored["cells"]) == 2 * 3 * 4
    assert len(stored["summary"]) == 3 * 4
    assert stored["published"] is None
    assert stored["data"]["title"] == "Photographs of scikit-image and scikit-learn"
    for cell in stored["cells"]:
        check(cell, CELL)
        assert cell["reconstruction"]["images"] == TINY.test_images
        assert sum(cell["reconstruction"]["histogram"]["counts"]) == TINY.test_images


def test_certified_networks_reconstruct_every_image(finished: Finished) -> None:
    certified = [cell for cell in finished.results["cells"] if cell["constraint"] == "certified"]
    for cell in certified:
        assert cell["reconstruction"]["v_score"] == 100.0
        assert cell["reconstruction"]["mse"] < 1e-4
        assert cell["inverse"]["converged_share"] == 1.0
        assert cell["inverse"]["elsewhere_share"] == 0.0
        assert cell["inverse"]["evaluations_mean"] <= 14
        assert cell["inverse"]["error_bound_holds_share"] == 1.0
        assert cell["study"]["local_lipschitz"]["largest"] <= cell["study"]["lipschitz_bound"] <= 0.9


def test_released_networks_take_fifty_steps_without_a_certificate(finished: Finished) -> None:
    released = [cell for cell in finished.results["cells"] if cell["constraint"] == "released"]
    for cell in released:
        assert cell["inverse"]["evaluations_mean"] == 50
        assert cell["study"]["lipschitz_bound"] is None
        assert cell["inverse"]["error_bound_max"] is None
        weights = cell["study"]["weights"]
        signed = cell["response"] in ("dot_product", "concatenation")
        assert signed or weights["negative_share"] == 0
        assert signed or math.isclose(weights["cancellation_largest"], 1, rel_tol=1e-5)
        assert weights["cancellation_largest"] is None or weights["cancellation_largest"] >= 1 - 1e-5


def test_every_repeat_has_its_own_seed_and_images(finished: Finished) -> None:
    pairs: dict[tuple, list[dict]] = {}
    for cell in finished.results["cells"]:
        pairs.setdefault((cell["response"], cell["constraint"], cell["normalization"]), []).append(cell)
    for first, second in pairs.values():
        assert (first["seed"], second["seed"]) == (0, 1)
        assert first["images"] != second["images"]
        assert first["training"]["last_loss"] != second["training"]["last_loss"]


def test_checkpoints_reproduce_the_measured_networks(finished: Finished) -> None:
    cell = next(TINY.cells())
    folder = finished.folder / "cells" / cell.folder
    network = build_network(cell, TINY, seed=99).eval()
    network.load_state_dict(load_file(folder / "model.safetensors"))
    stored = load_file(folder / "images.safetensors")
    with torch.no_grad():
        z = network(stored["original"])
        back = network[0].inverse(block_of(network).solve_inverse(z).value)
    torch.testing.assert_close(network[0].inverse(z), stored["latent"])
    torch.testing.assert_close(back, stored["reconstruction"], rtol=0, atol=1e-5)


def test_terminal_shows_the_table_and_the_report_path(finished: Finished) -> None:
    assert "V-score %" in finished.printed
    assert "…" not in finished.printed
    assert finished.printed.rstrip().endswith("report.html")


def test_training_checkpoints_are_removed(finished: Finished) -> None:
    assert not list(finished.folder.rglob("*.ckpt"))
    assert not [path for path in finished.folder.rglob(".*") if path.name != ".lock"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("whole") / "run"
    with blank_figures():
        return [strip(cell) for cell in start(folder, SMALL).results["cells"]]


STAGES = ("train", "evaluate", "study")


# Each network is interrupted once, so that no later resumption hides what an earlier one lost.
@pytest.mark.usefixtures("no_rendering")
@pytest.mark.parametrize("first", range(3), ids=STAGES)
def test_run_interrupted_in_every_network_and_report_matches_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: list[dict], first: int
) -> None:
    # Of a resumed run, the first network is the one that was interrupted.
    moments = [(run_module, STAGES[(first + number) % 3], 2 if number else 1) for number in range(3)]
    for number, (module, stage, call) in enumerate([*moments, (engine, "write_run_page", 1)]):
        original, calls = getattr(module, stage), 0

        def interrupted(*arguments: Any, original: Any = original, call: int = call, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call:
                raise KeyboardInterrupt
            return original(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(module, stage, interrupted)
            with pytest.raises(KeyboardInterrupt):
                start(tmp_path / "run", SMALL, resume=number > 0)
        done = list((tmp_path / "run" / "cells").glob("*/result.json"))
        assert len(done) == number
    resumed = start(tmp_path / "run", SMALL, resume=True)
    check_same(resumed.results["cells"], whole)


@pytest.mark.usefixtures("no_rendering")
def test_run_killed_within_an_epoch_resumes_from_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: list[dict]
) -> None:
    from invertible_attention.experiments.reconstruct.training import TrainingRun

    step, steps = TrainingRun.training_step, []

    def stop_at_the_fourth(self: TrainingRun, batch: torch.Tensor, index: int) -> None:
        steps.append(index)
        if len(steps) == 4:
            raise KeyboardInterrupt
        step(self, batch, index)

    monkeypatch.setattr(TrainingRun, "training_step", stop_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path / "run", SMALL)
    assert len(list((tmp_path / "run").rglob("training.ckpt"))) == 1
    steps.clear()
    monkeypatch.setattr(
        TrainingRun,
        "training_step",
        lambda self, batch, index: (steps.append(index), step(self, batch, index))[1],
    )
    resumed = start(tmp_path / "run", SMALL, resume=True)
    check_same(resumed.results["cells"], whole)
    total = sum(cell["training"]["steps"] for cell in whole)
    assert len(steps) == total - 3


@pytest.fixture
def copied(finished: Finished, tmp_path: Path) -> Path:
    """Return a copy of the finished run's folder: resuming writes results.json again, and tests come in any order."""
    return shutil.copytree(finished.folder, tmp_path / "copied")


@pytest.mark.usefixtures("no_rendering")
def test_finished_cells_are_not_repeated(
    finished: Finished, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "train", pytest.fail)
    again = start(copied, resume=True)
    assert again.results["cells"] == finished.results["cells"]


@pytest.mark.usefixtures("no_rendering")
def test_runs_of_earlier_versions_are_continued(
    finished: Finished, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lists = {"responses": list(RESPONSES), "constraints": ["certified", "relaxed", "released"]}
    settings = {name: value for name, value in TINY.to_json().items() if name != "variants"}
    before = settings | lists | {"normalizations": ["column"]}
    (copied / "configuration.json").write_text(json.dumps(before))
    folders = sorted(path.name for path in (copied / "cells").iterdir())
    for cell in TINY.cells():
        name = f"{cell.constraint}-{cell.normalization}-{cell.response}-{cell.repeat}"
        (copied / "cells" / cell.folder).rename(copied / "cells" / name)
    monkeypatch.setattr(run_module, "train", pytest.fail)
    again = start(copied, resume=True)
    assert again.results["cells"] == finished.results["cells"]
    assert again.results["configuration"] == TINY.to_json()
    assert sorted(path.name for path in (copied / "cells").iterdir()) == folders


@pytest.mark.usefixtures("no_rendering")
def test_finished_run_can_be_extended_with_variants(tmp_path: Path) -> None:
    one = replace(SMALL, variants=("dot_product/certified",))
    first = start(tmp_path / "run", one).results
    both = start(tmp_path / "run", replace(one, variants=("gaussian/certified",)), resume=True).results
    assert [cell["response"] for cell in both["cells"]] == ["dot_product", "gaussian"]
    assert both["configuration"]["variants"] == ["dot_product/certified", "gaussian/certified"]
    assert both["cells"][0] == first["cells"][0]
    assert len(both["summary"]) == 2


@pytest.mark.usefixtures("no_rendering")
def test_stored_networks_invert_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: list[dict]
) -> None:
    # Not the authors' layer: its norm estimates change with every evaluation.
    certified = replace(SMALL, variants=("dot_product/certified", "dot_product/certified/row"))
    whole = [cell for cell in whole if cell["constraint"] == "certified"]
    start(tmp_path / "run", certified)
    monkeypatch.setattr(run_module, "train", pytest.fail)
    evaluated = []
    evaluate = run_module.evaluate
    monkeypatch.setattr(run_module, "evaluate", lambda *a, **b: (evaluated.append(a), evaluate(*a, **b))[1])
    for _ in range(2):
        again = start(tmp_path / "run", certified, resume=True, reevaluate=True).results["cells"]
        trained = [cell["training"].pop("run") for cell in again]
        assert all(run["time"] < cell["run"]["time"] for run, cell in zip(trained, again, strict=True))
        check_same(again, whole)
    assert len(evaluated) == 2 * len(whole)


def test_changed_data_are_refused(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = run_module.draw_images

    def other(*arguments: Any, **options: Any) -> Any:
        images = draw(*arguments, **options)
        images.test[0, 0, 0, 0] ^= 1
        return images

    monkeypatch.setattr(run_module, "draw_images", other)
    with pytest.raises(ExperimentError, match="made from other images"):
        start(copied, resume=True)


def test_different_configuration_is_refused_without_loss(copied: Path) -> None:
    before = (copied / "results.json").read_bytes()
    with pytest.raises(ExperimentError, match="epochs was 2, now 3"):
        start(copied, replace(TINY, epochs=3), resume=True)
    assert (copied / "results.json").read_bytes() == before


@pytest.mark.usefixtures("no_rendering")
@pytest.mark.parametrize("micro_batch", [1, 3])
def test_microbatches_give_the_same_results(tmp_path: Path, whole: list[dict], micro_batch: int) -> None:
    parts = start(tmp_path / "run", replace(SMALL, micro_batch=micro_batch)).results["cells"]
    for cell, expected in zip(parts, whole, strict=True):
        assert cell["training"]["last_loss"] == pytest.approx(expected["training"]["last_loss"], rel=1e-4)
        assert cell["reconstruction"]["v_score"] == expected["reconstruction"]["v_score"]


@pytest.mark.usefixtures("no_rendering")
def test_small_folder_is_split_and_the_split_reported(tmp_path, capsys) -> None:
    for number in range(7):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
    command = ["reconstruct", "--dataset", "folder", "--data-dir", str(tmp_path / "photos"), "--epochs", "1"]
    command += [
        "--variants",
        "concatenation/certified",
        "--repeats",
        "1",
        "--device",
        "cpu",
    ]
    command += ["--output", str(tmp_path / "run")]
    assert main(command) == 0
    assert "photos: 4 images for training and 3 for testing" in capsys.readouterr().out.replace("\n", " ")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["configuration"]["train_images"] == 4
    assert results["cells"][0]["reconstruction"]["images"] == 3
