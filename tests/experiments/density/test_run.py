"""Training, evaluating and sampling one density, and its reports."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from invertible_attention.experiments.density import run as density_run
from invertible_attention.experiments.density.configuration import Configuration
from invertible_attention.experiments.density.run import evaluate_run, sample_run, train_run
from invertible_attention.experiments.errors import ExperimentError
from invertible_attention.experiments.files import read_json, write_tensors
from invertible_attention.experiments.report.summary import run_markdown, write_run_page

TINY = Configuration.choose(
    quick=True, blocks=(1,), hidden_channels=4, train_images=32, test_images=4, batch_size=16, steps=4
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("density") / "run"
    train_run(TINY, output=folder, device="cpu", draws=1, console=Console(file=io.StringIO()))
    return folder


def printed(use: Any, *arguments: Any, **options: Any) -> str:
    shown = io.StringIO()
    use(*arguments, device="cpu", console=Console(file=shown), **options)
    return shown.getvalue()


def copy_of(folder: Path, to: Path) -> Path:
    to.mkdir()
    for name in ("configuration.json", "model.safetensors"):
        (to / name).write_bytes((folder / name).read_bytes())
    return to


def test_resuming_a_finished_run_changes_nothing(trained: Path) -> None:
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    shown = io.StringIO()
    results = train_run(TINY, output=trained, device="cpu", resume=True, console=Console(file=shown))
    assert results == read_json(trained / "results.json")
    assert "This run is finished" in shown.getvalue()
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before


def test_amplified_rounding_is_reported(trained: Path) -> None:
    results = read_json(trained / "results.json")
    assert 0 <= results["samples"]["round_trip_error"] < 0.5
    assert "amplified" not in run_markdown(results, trained).partition("|")[0]
    for error, said in ((3.0, "errors of up to 3 levels"), (None, "Samples do not come back")):
        results["samples"]["round_trip_error"] = error
        assert said in run_markdown(results, trained)


def test_weights_of_another_model_are_refused(trained: Path, tmp_path: Path) -> None:
    folder = copy_of(trained, tmp_path / "run")
    write_tensors(folder / "model.safetensors", {"weight": torch.zeros(2)})
    with pytest.raises(ExperimentError, match="does not hold the weights of this configuration"):
        printed(evaluate_run, folder)


def test_density_without_temperature_is_sampled_at_one_only(tmp_path: Path) -> None:
    pytest.importorskip("zuko")
    given = TINY.to_json() | {"model": "made", "attention": "none", "steps": 2}
    train_run(
        Configuration(**given), output=tmp_path, device="cpu", draws=1, console=Console(file=io.StringIO())
    )
    assert "2 of 2 samples" in printed(sample_run, tmp_path, count=2)
    with pytest.raises(ExperimentError, match=r"sampled at temperature 1, got 0\.5"):
        printed(sample_run, tmp_path, temperature=0.5)


def test_no_picture_without_converged_samples(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_of(trained, tmp_path / "run")
    monkeypatch.setattr(density_run, "draw_samples", lambda *_, **__: torch.empty(0, dtype=torch.uint8))
    monkeypatch.setattr(density_run, "interpolate", lambda *_, **__: [[]])
    assert "0 of 3 samples" in printed(sample_run, folder, count=3)
    assert not list(folder.glob("*.png"))


def test_nonfinite_density_is_reported(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_of(trained, tmp_path / "run")
    load = density_run._load

    def poisoned(*arguments: Any) -> Any:
        configuration, model, data = load(*arguments)
        for parameter in model.parameters():
            parameter.data.fill_(torch.nan)
        return configuration, model, data

    monkeypatch.setattr(density_run, "_load", poisoned)
    assert "not finite on 8 of 8 values" in printed(evaluate_run, folder, draws=2)
    assert read_json(folder / "evaluation.json")["bits_per_dim"] is None


def test_cifar10_report_shows_published_values(trained: Path, tmp_path: Path) -> None:
    results = read_json(trained / "results.json")
    page = write_run_page(tmp_path / "page.html", results).read_text()
    assert "No density of CIFAR-10 is among the folders" in page
    results["configuration"]["dataset"] = "cifar10"
    page = write_run_page(tmp_path / "page.html", results).read_text()
    assert "ours with standard errors" in page
    assert "<td>3.39</td>" in page


def test_defaults_depend_on_the_dataset() -> None:
    timed = Configuration.choose(minutes=3.0)
    assert (timed.minutes, timed.decay) == (3.0, False)
    quick = Configuration.choose(dataset="cifar10", quick=True)
    assert (quick.train_images, quick.test_images) == (2000, 200)
    photographs = Configuration.choose(dataset="photos")
    assert (photographs.train_images, photographs.test_images) == (1000, 100)


def test_truncated_series_defaults_to_five_terms() -> None:
    choose = Configuration.choose
    assert choose(estimator="power-series").terms == 5
    choose = Configuration.choose
    assert choose(estimator="power-series", terms=3).terms == 3
    choose = Configuration.choose
    assert choose(estimator="roulette").terms == Configuration().terms
