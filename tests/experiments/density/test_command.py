from __future__ import annotations

from pathlib import Path

import pytest
import torch

from invertible_attention.cli import main
from invertible_attention.experiments.density.configuration import Configuration
from invertible_attention.experiments.density.data import load_data
from invertible_attention.experiments.errors import ExperimentError
from invertible_attention.experiments.files import read_json

SMALL = ["--quick", "--blocks", "2", "--hidden-channels", "8"]
SMALL += ["--test-images", "40", "--device", "cpu", "--draws", "2"]


def density(*arguments: str) -> int:
    return main(["density", *arguments])


def test_train_evaluate_and_sample(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = str(tmp_path / "run")
    assert density("train", *SMALL, "--steps", "60", "--evaluate-every", "30", "--output", output) == 0
    results = read_json(tmp_path / "run" / "results.json")
    assert results["evaluation"]["exact"]
    assert results["evaluation"]["bits_per_dim"] < results["untrained"]["bits_per_dim"] - 0.2
    assert results["samples"]["converged"] == results["samples"]["drawn"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Density: Handwritten digits" in page
    assert page.count("data:image/png") == 3
    assert not (tmp_path / "run" / "training.ckpt").exists()

    assert density("evaluate", "--output", output, "--estimator", "exact", "--draws", "2") == 0
    again = read_json(tmp_path / "run" / "evaluation.json")
    error = results["evaluation"]["standard_error"] + again["standard_error"]
    assert abs(again["bits_per_dim"] - results["evaluation"]["bits_per_dim"]) < 4 * error
    assert density("evaluate", "--output", output, "--probes", "2", "--draws", "2", "--images", "20") == 0
    assert read_json(tmp_path / "run" / "evaluation.json")["exact"] is False

    (tmp_path / "run" / "samples.png").unlink()
    assert density("sample", "--output", output, "--count", "9", "--temperature", "0.7") == 0
    assert (tmp_path / "run" / "samples.png").is_file()
    assert "9 of 9 samples" in capsys.readouterr().out

    assert density("train", *SMALL, "--steps", "60", "--evaluate-every", "30", "--output", output) == 1
    assert "already holds this run" in capsys.readouterr().err


@pytest.mark.slow
def test_study_compares_variants_trained_in_processes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "study"
    arguments = ["--variants", "none", "gaussian/certified", "--seeds", "2", "--workers", "2", "--steps", "5"]
    assert density("study", *SMALL, *arguments, "--output", str(output)) == 0
    study = read_json(output / "study.json")
    assert [row["variant"] for row in study["rows"]] == ["none", "gaussian/certified"]
    assert all(len(row["bits_per_dim"]["values"]) == 2 for row in study["rows"])
    assert study["rows"][1]["parameters_relative"] < 1.03
    assert " gaussian/certified " in capsys.readouterr().out
    assert "Densities compared:" in (output / "study.html").read_text()
    before = (output / "study.json").stat().st_mtime_ns
    assert density("study", *SMALL, *arguments, "--output", str(output), "--resume") == 0
    assert (output / "study.json").stat().st_mtime_ns > before


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["train", "--resume", "--overwrite"], 2, "Mutually exclusive arguments: {--resume, --overwrite}"),
        (
            ["train", "--coefficient", "1.5"],
            2,
            'Invalid value "1.5" for --coefficient. It must be between 0 and 1.',
        ),
        (["train", "--attention-after", "top"], 2, "got 'top'"),
        (["train", "--data-dir", "/nowhere"], 2, '"/nowhere" does not exist.'),
        (["train", "--train-images", "9999"], 1, "there are 1797"),
        (["train", "--size", "16", "16"], 1, "the digits are 8×8"),
        (["train", "--blocks", "1", "1", "1", "1"], 1, "this model does not fit the images"),
        (["evaluate"], 1, "holds no trained density"),
        (["evaluate", "--estimator", "power-series"], 2, 'Choose from: "roulette", "exact".'),
        (["study", "--variants", "magic"], 1, "'magic', which means nothing"),
    ],
)
def test_user_errors_are_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    status: int,
    words: str,
) -> None:
    assert density(*arguments, "--output", str(tmp_path / "out"), *(["--device", "cpu"])) == status
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_digits_split_is_the_same_for_every_seed() -> None:
    one, two = (load_data(Configuration.choose(seed=seed)) for seed in (0, 1))
    assert one.fingerprint == two.fingerprint
    assert (one.levels, one.shape, len(one.train), len(one.test)) == (17, (1, 8, 8), 1437, 360)
    assert one.train.max() == 16
    few = load_data(Configuration.choose(train_images=10, test_images=5))
    assert torch.equal(few.train, one.train[:10])
    with pytest.raises(ExperimentError, match="there are 1797"):
        load_data(Configuration.choose(train_images=1797))


def test_cifar10_images_are_read(data_dir: Path) -> None:
    configuration = Configuration.choose(dataset="cifar10", train_images=8, test_images=4)
    found = load_data(configuration, data_dir)
    assert found.shape == (3, 32, 32)
    assert (len(found.train), len(found.test), found.levels) == (8, 4, 256)
