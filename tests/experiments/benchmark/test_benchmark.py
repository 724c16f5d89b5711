"""The benchmark measures what it says, and draws its conclusions from its own numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from invertible_attention.experiments.benchmark import run as run_module
from invertible_attention.experiments.benchmark.contenders import CONTENDERS, RESPONSES, work
from invertible_attention.experiments.benchmark.memory import STATUS, peak_memory
from invertible_attention.experiments.benchmark.released import measure_released
from invertible_attention.experiments.benchmark.settings import Settings
from invertible_attention.experiments.benchmark.summary import claims, growth
from invertible_attention.experiments.benchmark.timing import exponent, interleaved
from invertible_attention.experiments.errors import ExperimentError
from invertible_attention.experiments.files import read_json


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("contender", CONTENDERS)
@pytest.mark.parametrize("response", RESPONSES)
def test_all_work_runs(response: str, contender: str, backward: bool):
    work(response, contender, 20, batch=2, backward=backward)()


def test_contenders_take_turns():
    order: list[str] = []
    times = interleaved(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, repeats=3, seconds=9.0
    )
    assert order == ["a", "b"] * 4
    assert [len(taken) for taken in times.values()] == [3, 3]


def test_exponent_of_a_power():
    assert exponent([64, 512, 4096], [n**1.5 for n in (64, 512, 4096)]) == pytest.approx(1.5)


@pytest.mark.skipif(not STATUS.exists(), reason="the system does not tell a process's peak memory")
def test_memory_sees_the_matrix():
    matrix = 4 * 3000**2
    whole = peak_memory("gaussian", "reference", 3000)
    ours = peak_memory("gaussian", "auto", 3000)
    assert whole is not None
    assert ours is not None
    assert ours < matrix < whole


def test_claims_follow_from_the_numbers():
    times = [
        {
            "response": "concatenation",
            "contender": name,
            "tokens": n,
            "batch": 1,
            "backward": False,
            "seconds": s,
        }
        for n in (4096, 8192)
        for name, s in (("auto", n * 1e-6), ("reference", n * 1e-4 * 0.5))
    ]
    results = {"times": times, "memory": [], "released": []}
    results["released"].append({"response": "concatenation", "tokens": 8192, "seconds": 9.0, "bytes": 1})
    results["growth"] = growth(results)
    found = {record["claim"]: (record["measured"], record["met"]) for record in claims(results, 8192)}
    assert found["concatenation: forward, times faster than N×N"] == (50.0, False)
    assert found["concatenation: growth exponent of time"] == (1.0, True)
    assert found["concatenation: forward, times faster than the released code"][1]


def test_a_missing_checkout_is_named(tmp_path: Path):
    with pytest.raises(ExperimentError, match=r"no inv_attention\.py"):
        measure_released(tmp_path, "gaussian", (3, 3), repeats=1)


def test_run_writes_results_and_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tiny = Settings(
        tokens=(32, 64), most_backward_tokens=32, memory_tokens=(), repeats=3, seconds=0.1, batch=1
    )
    monkeypatch.setattr(run_module, "QUICK", tiny)
    lines: list[str] = []
    results = run_module.run(tmp_path, quick=True, say=lines.append)
    assert read_json(tmp_path / "benchmark.json") == results
    assert (tmp_path / "attention.png").stat().st_size > 10_000
    assert len(results["times"]) == len(RESPONSES) * len(CONTENDERS) * 3
    assert any("times faster" in line for line in lines)
