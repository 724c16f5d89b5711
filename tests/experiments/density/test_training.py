from __future__ import annotations

import csv
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from invertible_attention.cli import main
from invertible_attention.experiments.density import training as module
from invertible_attention.experiments.density.configuration import Configuration
from invertible_attention.experiments.density.curve import is_due
from invertible_attention.experiments.density.data import DensityData
from invertible_attention.experiments.density.network import build_model
from invertible_attention.experiments.density.training import DensityTraining, initialize, train
from invertible_attention.experiments.files import read_json
from invertible_attention.flows import Flow

from ..conftest import StartCommand

SETTINGS = Configuration.choose(
    blocks=(1,), hidden_channels=4, steps=12, batch_size=8, warmup=2, evaluate_every=4, curve_images=8
)
CPU = torch.device("cpu")


class Stop(Exception):
    pass


def data() -> DensityData:
    images = torch.randint(0, 17, (40, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return DensityData(images[:32], images[32:], 17, "noise", "")


def build(configuration: Configuration = SETTINGS) -> Flow:
    model = build_model(configuration, (1, 8, 8), 17)
    assert isinstance(model, Flow)
    initialize(model, data().train, configuration.seed)
    return model


def run(folder: Path, model: Flow, configuration: Configuration = SETTINGS, stop: int = 99) -> dict[str, Any]:
    def report(step: int, loss: float) -> None:
        if step > stop:
            raise Stop

    result = train(model, data(), configuration, device=CPU, folder=folder, report=report)
    assert result is not None
    return result


def same(one: Flow, two: Flow) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize("stop", [1, 5, 8])
def test_resumed_run_matches_an_uninterrupted_one(tmp_path: Path, stop: int) -> None:
    expected, interrupted, resumed = build(), build(), build()
    whole = run(tmp_path / "whole", expected)
    with pytest.raises(Stop):
        run(tmp_path / "parts", interrupted, stop=stop)
    assert (tmp_path / "parts" / "training.ckpt").is_file()
    result = run(tmp_path / "parts", resumed)
    assert same(resumed, expected)
    assert [point["test"] for point in result["curve"]] == [point["test"] for point in whole["curve"]]
    assert result["steps"] == 12


def test_stored_weights_are_the_average(tmp_path: Path) -> None:
    averaged, last = build(), build()
    run(tmp_path / "average", averaged)
    run(tmp_path / "last", last, Configuration(**{**SETTINGS.to_json(), "average": 1e-9}))
    assert not same(averaged, last)


def test_points_lie_ever_farther_apart_where_no_distance_is_given() -> None:
    assert [step for step in range(1, 200) if is_due(step, 0)] == [10, 14, 20, 28, 40, 57, 80, 113, 160]
    assert [step for step in range(1, 20) if is_due(step, 6)] == [6, 12, 18]


def test_curve_and_log_have_the_documented_columns(tmp_path: Path) -> None:
    result = run(tmp_path, build())
    assert [point["step"] for point in result["curve"]] == [4, 8, 12]
    times = [point["processor_seconds"] for point in result["curve"]]
    assert 0 < times[0] < times[1] < times[2] == pytest.approx(result["processor_seconds"])
    with (tmp_path / "logs" / "version_0" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {"step", "bits_per_dim", "gradient_norm", "test_bits_per_dim"} <= set(rows[0])
    assert list((tmp_path / "logs" / "version_0").glob("events.out.tfevents.*"))


def test_time_limit_ends_training(tmp_path: Path) -> None:
    configuration = Configuration(**{**SETTINGS.to_json(), "minutes": 1e-6})
    result = run(tmp_path, build(configuration), configuration)
    assert result["steps"] == 1
    assert [point["step"] for point in result["curve"]] == [1]


def test_training_that_time_ends_is_kept_and_reported_in_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHECKPOINT_STEPS", 3)
    configuration = Configuration(**{**SETTINGS.to_json(), "minutes": 5.0, "steps": 10**6})
    reported: list[int] = []

    def report(seconds: int, loss: float) -> None:
        reported.append(seconds)
        if len(reported) == 5:
            raise Stop

    with pytest.raises(Stop):
        train(build(), data(), configuration, device=CPU, folder=tmp_path, report=report)
    assert (tmp_path / "training.ckpt").is_file()
    # Steps would be 1 to 5.
    assert reported[0] == 0


def test_a_step_without_a_finite_gradient_is_skipped_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = DensityTraining.training_step

    def poisoned(self: DensityTraining, batch: torch.Tensor, index: int) -> torch.Tensor:
        loss = original(self, batch, index)
        return loss * math.nan if index in (3, 4) else loss

    monkeypatch.setattr(DensityTraining, "training_step", poisoned)
    model = build()
    result = run(tmp_path, model)
    assert result["skipped_steps"] == 2
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def arguments(folder: Path, *more: str, steps: int = 100, evaluate_every: int = 50) -> list[str]:
    settings = "--quick --blocks 1 --hidden-channels 4 --train-images 64 --test-images 8 --batch-size 16"
    limits = f"--steps {steps} --evaluate-every {evaluate_every} --draws 2 --device cpu"
    return ["density", "train", *settings.split(), *limits.split(), "--output", str(folder), *more]


PROGRAM = [sys.executable, "-m", "invertible_attention"]


@pytest.mark.slow
@pytest.mark.usefixtures("no_rendering", "one_thread")
def test_killed_run_resumes_to_the_same_weights(tmp_path: Path, start_command: StartCommand) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = start_command(arguments(killed))
    while process.is_alive() and not (killed / "training.ckpt").is_file():
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (killed / "results.json").exists()

    assert main(arguments(killed, "--resume")) == 0
    assert main(arguments(whole)) == 0
    one, two = (load_file(folder / "model.safetensors") for folder in (whole, killed))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    first, second = (read_json(folder / "results.json")["evaluation"] for folder in (whole, killed))
    assert first == second


@pytest.mark.slow
def test_two_processes_train_together(tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [*PROGRAM, *arguments(tmp_path / "both", "--devices", "2", steps=6, evaluate_every=3)]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    results = read_json(tmp_path / "both" / "results.json")
    assert results["training"]["steps"] == 6
    assert results["evaluation"]["bits_per_dim"] < results["untrained"]["bits_per_dim"] + 0.05
