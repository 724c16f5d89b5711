"""An interrupted run of the conditional density resumes to the same results."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn", reason="needs scikit-learn: pip install 'invertible-attention[experiments]'")
PATH = Path(__file__).parents[2] / "benchmarks" / "conditional_digits.py"


@pytest.fixture
def digits(monkeypatch):
    """The benchmark on a few images, stored at every second step."""
    specification = importlib.util.spec_from_file_location("conditional_digits", PATH)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    load = module.load

    def few(kind):
        (x, y), (x_test, y_test) = load(kind)
        return (x[:64], y[:64]), (x_test[:5], y_test[:5])

    monkeypatch.setattr(module, "load", few)
    monkeypatch.setattr(module, "STORE_EVERY", 2)
    threads = torch.get_num_threads()
    yield module
    torch.set_num_threads(threads)


def arguments(folder: Path, *more: str) -> list[str]:
    where = ["--output", str(folder / "digits.json"), "--checkpoints", str(folder / "checkpoints")]
    sizes = ["--blocks", "1", "--steps", "4", "--batch", "8", "--draws", "1", "--seeds", "0", "1"]
    return [*where, *sizes, *more]


def read(folder: Path) -> dict:
    """The measurements without their times."""
    content = json.loads((folder / "digits.json").read_text())
    for seed in content["seeds"].values():
        for kind in ("unconditional", "conditional"):
            assert seed[kind].pop("cpu_seconds") > 0
    return {name: value for name, value in content.items() if name != "run"}


def test_interrupted_run_gives_the_same_results(digits, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    digits.main(arguments(whole))
    store = digits.Training.store
    for last in (1, 2):  # in the middle of the first training, then in the middle of the second

        def stop(training, calls=itertools.count(1), last=last):  # noqa: B008
            store(training)
            if next(calls) == last:
                raise KeyboardInterrupt

        monkeypatch.setattr(digits.Training, "store", stop)
        with pytest.raises(KeyboardInterrupt):
            digits.main(arguments(parts, "--resume"))
    monkeypatch.setattr(digits.Training, "store", store)
    digits.main(arguments(parts, "--resume"))
    assert read(parts) == read(whole)
    with pytest.raises(SystemExit, match="other settings"):
        digits.main([*arguments(parts, "--resume"), "--lr", "0.5"])


def test_summary_matches_the_runs(digits, tmp_path):
    digits.main(arguments(tmp_path))
    content = json.loads((tmp_path / "digits.json").read_text())
    seeds = content["seeds"].values()
    gains = [run["unconditional"]["bits_per_dim"] - run["conditional"]["bits_per_dim"] for run in seeds]
    assert [run["gain"] for run in seeds] == pytest.approx(gains, abs=1e-12)
    assert content["gain"] == pytest.approx(sum(gains) / 2)
    assert content["gain_standard_error_over_seeds"] == pytest.approx(abs(gains[0] - gains[1]) / 2)
    assert content["run"]["versions"]["torch"] == torch.__version__
    assert content["run"]["machine"]["threads"] == 1
    assert all(run["conditional"]["largest_reconstruction_error"] < 1e-3 for run in seeds)
    assert math.isfinite(content["ratio"])
