"""The benchmark measures what it names, and derives its claims from its own numbers."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from invertible_attention.experiments.benchmark import implementations
from invertible_attention.experiments.benchmark import run as run_module
from invertible_attention.experiments.benchmark.configuration import QUICK, Configuration
from invertible_attention.experiments.benchmark.implementations import IMPLEMENTATIONS, RESPONSES, work
from invertible_attention.experiments.benchmark.memory import STATUS, peak_memory
from invertible_attention.experiments.benchmark.released import measure_released
from invertible_attention.experiments.benchmark.summary import claims, growth
from invertible_attention.experiments.benchmark.timing import exponent, interleaved
from invertible_attention.experiments.errors import ExperimentError
from invertible_attention.experiments.files import read_json


def attention_by_definition(
    response: str, implementation: str, query: Tensor, key: Tensor, value: Tensor
) -> Tensor:
    """The N×N matrix written down: PyTorch's softmax over keys, or a response normalized by column."""
    if implementation == "sdpa":
        return torch.softmax(query @ key.mT / query.shape[-1] ** 0.5, dim=-1) @ value
    form = RESPONSES[response]
    scores = query @ key.mT if form.combine == "product" else query + key.mT
    weights = scores.exp() if form.phi == "exp" else torch.nn.functional.elu(scores) + 1
    return weights / weights.sum(dim=-2, keepdim=True) @ value


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("response", RESPONSES)
def test_measured_work_is_exactly_the_named_attention(
    response: str, implementation: str, backward: bool, monkeypatch: pytest.MonkeyPatch
):
    calls: list[tuple[tuple[Tensor, ...], Tensor, str]] = []
    gradients: list[tuple[tuple[Tensor, ...], Tensor]] = []
    attend, fused, grad = (
        implementations.attend,
        torch.nn.functional.scaled_dot_product_attention,
        torch.autograd.grad,
    )

    def attended(*inputs: Tensor, implementation: str, **arguments: Any) -> Tensor:
        calls.append((inputs, attend(*inputs, implementation=implementation, **arguments), implementation))
        return calls[-1][1]

    def fused_attended(*inputs: Any) -> Tensor:
        calls.append((inputs, fused(*inputs), "sdpa"))
        return calls[-1][1]

    def graded(outputs: Any, inputs: Any, grad_outputs: Any = None, *rest: Any, **arguments: Any) -> Any:
        found = grad(outputs, inputs, grad_outputs, *rest, **arguments)
        if calls and outputs is calls[-1][1]:
            gradients.append((found, grad_outputs))
        return found

    monkeypatch.setattr(implementations, "attend", attended)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", fused_attended)
    monkeypatch.setattr(torch.autograd, "grad", graded)
    once = work(response, implementation, 20, batch=2, backward=backward)
    assert not calls, "work is done when the function is called, not when it is made"
    once()
    once()
    assert len(calls) == 2
    (inputs, output, implementation), repeated = calls
    assert implementation == implementation
    assert all(tensor is again for tensor, again in zip(inputs, repeated[0], strict=True))
    dim = implementations.CHANNELS if implementation == "sdpa" else RESPONSES[response].dim
    assert [tuple(tensor.shape) for tensor in inputs] == [
        (2, 1, 20, d) for d in (dim, dim, implementations.CHANNELS)
    ]
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    expected = attention_by_definition(response, implementation, *exact)
    torch.testing.assert_close(output.double(), expected, rtol=1e-4, atol=1e-4)
    assert output.requires_grad == backward
    assert len(gradients) == (2 if backward else 0)
    for found, cotangent in gradients:
        wanted = grad(expected, exact, cotangent.double(), retain_graph=True)
        for got, want in zip(found, wanted, strict=True):
            torch.testing.assert_close(got.double(), want, rtol=1e-3, atol=1e-3)


def test_implementations_are_measured_in_rounds():
    order: list[str] = []
    times = interleaved(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, repeats=3, seconds=9.0
    )
    assert order == ["a", "b"] * 4
    assert [len(taken) for taken in times.values()] == [3, 3]


def test_fitted_exponent_of_a_power_law():
    assert exponent([64, 512, 4096], [n**1.5 for n in (64, 512, 4096)]) == pytest.approx(1.5)


@pytest.mark.skipif(not STATUS.exists(), reason="the system does not tell a process's peak memory")
def test_memory_measurement_includes_the_matrix():
    matrix = 4 * 6000**2
    whole = peak_memory("gaussian", "reference", 6000)
    ours = peak_memory("gaussian", "auto", 6000)
    assert whole is not None
    assert ours is not None
    assert ours < matrix < whole


def test_claims_follow_from_the_measurements():
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
    assert found["concatenation: forward, times faster than the authors’ code"][1]


def test_missing_checkout_error_shows_the_path(tmp_path: Path):
    with pytest.raises(ExperimentError, match=r"no inv_attention\.py"):
        measure_released(tmp_path, "gaussian", (3, 3), repeats=1)


def test_run_writes_results_and_figure(tmp_path: Path):
    tiny = Configuration(
        tokens=(32, 64), most_backward_tokens=32, memory_tokens=(), repeats=3, seconds=0.1, batch=1
    )
    printed = io.StringIO()
    results = run_module.run(tiny, output=tmp_path, console=Console(file=printed, width=120))
    assert results is not None
    assert read_json(tmp_path / "benchmark.json") == results
    assert (tmp_path / "attention.png").stat().st_size > 10_000
    assert len(results["times"]) == len(RESPONSES) * len(IMPLEMENTATIONS) * 3
    assert "gaussian, 32 tokens, with gradients: auto " in printed.getvalue()
    assert "times faster" in printed.getvalue()
    again = run_module.run(tiny, output=tmp_path, resume=True, console=Console(file=io.StringIO()))
    assert again is not None
    assert again["times"] == results["times"], "what is measured is kept"


def test_stored_settings_are_those_of_earlier_versions():
    sizes = [64, 256, 1024, 4096, 9701, 16384, 32768, 65536]
    full = {
        "tokens": sizes,
        "most_backward_tokens": 16384,
        "memory_tokens": [1024, 4096, 9701, 16384, 65536],
        "repeats": 15,
        "seconds": 15.0,
        "matrix_bytes": 2**30,
        "batch": 64,
    }
    quick = {"tokens": [64, 256, 1024, 2048], "memory_tokens": [2048], "most_backward_tokens": 2048}
    assert Configuration().to_json() == full
    assert Configuration.from_json(QUICK).to_json() == full | quick | {
        "repeats": 5,
        "seconds": 1.0,
        "batch": 2,
    }


@pytest.mark.parametrize(
    ("tokens", "claimed"), [((64, 2048), 2048), ((64, 16384), 64), ((16384, 32768), 16384)]
)
def test_claims_are_made_at_a_measured_size(tokens: tuple[int, ...], claimed: int):
    assert Configuration().claimed_tokens == 9701
    assert Configuration(tokens=tokens).claimed_tokens == claimed
