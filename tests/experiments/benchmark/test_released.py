"""Timing the authors' code from a checkout, here an imitation of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from invertible_attention.cli import main
from invertible_attention.experiments.benchmark import measure as measuring
from invertible_attention.experiments.benchmark import memory, run
from invertible_attention.experiments.benchmark.configuration import (
    PAPER_SIZE,
    PAPER_TOKENS,
    QUICK,
    Configuration,
)
from invertible_attention.experiments.benchmark.figure import draw
from invertible_attention.experiments.benchmark.implementations import RESPONSES
from invertible_attention.experiments.benchmark.released import CLASSES, measure_released
from invertible_attention.experiments.benchmark.summary import claims, growth
from invertible_attention.experiments.benchmark.timing import interleaved
from invertible_attention.experiments.errors import ExperimentError

CHECKOUT = """
import time
import torch

class Attention_dot(torch.nn.Module):
    def __init__(self, channels):
        super().__init__()

    def forward(self, image):
        assert image.shape == (1, 12, 8, 6)
        time.sleep(0.02)
        return image
"""


def test_checkout_runs_in_a_separate_process(tmp_path: Path) -> None:
    (tmp_path / "inv_attention.py").write_text(CHECKOUT)
    found = measure_released(tmp_path, "dot_product", (8, 6), repeats=2)
    assert found["seconds"] >= 0.02
    assert found["bytes"] >= 0
    with pytest.raises(ExperimentError, match=r"measuring .*gaussian.* failed: .*Attention_gaussian"):
        measure_released(tmp_path, "gaussian", (8, 6), repeats=1)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """Measurements of the released code alone."""

    def released(folder: Path, response: str, size: tuple[int, int], *, repeats: int) -> dict[str, Any]:
        assert (folder, size) == (tmp_path, PAPER_SIZE)
        return {"seconds": 2.0 if response == "concatenation" else 0.5, "bytes": 3_000_000_000 * repeats}

    monkeypatch.setattr(measuring, "measure_released", released)
    said: list[str] = []
    records = [measuring._released(response, tmp_path, said.append) for response in RESPONSES]
    assert "concatenation, authors’ code: 2.00 s, 3.00 GB" in said
    return {"times": [], "memory": [], "released": records, "growth": []}


def test_released_responses_are_measured_at_the_papers_size(measured: dict[str, Any]) -> None:
    assert [record["response"] for record in measured["released"]] == list(CLASSES) == list(RESPONSES)
    assert {record["tokens"] for record in measured["released"]} == {PAPER_TOKENS}
    assert growth(measured) == []


OURS = {"response": "concatenation", "contender": "auto", "tokens": PAPER_TOKENS, "batch": 1}
OURS |= {"backward": False, "seconds": 0.001, "turns": 3}


def test_no_claim_about_implementations_not_timed_here(measured: dict[str, Any]) -> None:
    words = "concatenation: forward, times faster than the authors’ code"
    assert words not in {claim["claim"] for claim in claims(measured, PAPER_TOKENS)}
    measured["times"] = [OURS]
    (claim,) = (claim for claim in claims(measured, PAPER_TOKENS) if claim["claim"] == words)
    assert claim["measured"] == pytest.approx(2000.0)
    assert claim["met"]


def test_released_code_has_a_cross_marker_in_the_figure(measured: dict[str, Any]) -> None:
    measured["times"] = [OURS]
    without = draw(measured | {"released": []}).png
    assert draw(measured).png != without


def test_memory_is_measured_only_where_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "STATUS", tmp_path / "absent")
    assert memory.peak_memory("gaussian", "auto", 64, batch=1, backward=False) is None


def test_time_limit_ends_the_rounds_after_at_least_three() -> None:
    calls: list[int] = []
    times = interleaved({"one": lambda: calls.append(1)}, repeats=10, seconds=0.0)
    assert len(times["one"]) == 3
    assert len(calls) == 4


@pytest.mark.parametrize(("asked", "used"), [("auto", "cpu"), ("cpu", "cpu")])
def test_command_defaults_to_the_cpu(
    asked: str, used: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(run, "run", lambda made, **options: calls.append({"configuration": made} | options))
    arguments = ["benchmark", "--quick", "--tokens", "32,64", "--device", asked, "--output", str(tmp_path)]
    assert main([*arguments, "--authors-code", str(tmp_path / "theirs")]) == 0
    (call,) = calls
    assert (call["device"], call["output"]) == (used, tmp_path)
    assert call["configuration"] == Configuration.from_json(QUICK | {"tokens": (32, 64)})
    assert call["authors_code"] == tmp_path / "theirs"
