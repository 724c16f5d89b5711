"""What do the log-determinant estimators cost, how far do they spread, and are they biased? All in one run.

One certified layer on 64 values, whose weights are set so that it contracts about as much as its certificate allows.
Every estimator is called many times at the same point and compared with the exact value; CPU times are in units
of one forward pass of the same layer.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import invertible_attention as ia
from invertible_attention.experiments.metadata import run_metadata

CHANNELS, SIZE, BATCH = 4, 4, 64
ESTIMATORS = {
    "Exact()": ia.Exact(),
    "PowerSeries(terms=5)": ia.PowerSeries(terms=5),
    "PowerSeries(terms=20)": ia.PowerSeries(terms=20),
    "RussianRoulette()": ia.RussianRoulette(),
    'RussianRoulette(distribution="rademacher")': ia.RussianRoulette(distribution="rademacher"),
    "RussianRoulette(probes=4)": ia.RussianRoulette(probes=4),
    'RussianRoulette(tail="poisson")': ia.RussianRoulette(tail="poisson"),
}


def contracting_layer() -> tuple[ia.InvertibleAttention, Tensor]:
    """A layer that subtracts what it gathers, from near by: its series converges slowly."""
    torch.manual_seed(0)
    prior = ia.TorusPrior(width=0.5, reference=SIZE)
    layer = ia.InvertibleAttention(CHANNELS, "embedded_gaussian", position_prior=prior)
    x = torch.randn(BATCH, CHANNELS, SIZE, SIZE)
    layer.initialize(x)
    with torch.no_grad():
        layer.branch.value_weight.copy_(torch.eye(CHANNELS))
        layer.branch.out_weight.copy_(-torch.eye(CHANNELS))
        layer.branch.response.query_weight.mul_(0.3)
        layer.branch.response.key_weight.mul_(0.3)
    return layer, x


def seconds(function: Callable[[], object], repeats: int = 15) -> float:
    function()
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        function()
        times.append(time.process_time() - begin)
    return statistics.median(times)


def measure(
    layer: ia.InvertibleAttention, x: Tensor, name: str, exact: float, calls: int
) -> dict[str, object]:
    layer.logdet = ESTIMATORS[name]
    point = x[:1].expand_as(x).contiguous()

    def evaluate() -> Tensor:
        with torch.no_grad():
            return layer.eval().forward_and_logdet(point)[1]

    def train() -> None:
        _, logdet = layer.train().forward_and_logdet(point)
        logdet.mean().backward()
        layer.zero_grad(set_to_none=True)

    if isinstance(layer.logdet, ia.Exact):
        calls = 2
    draws = torch.stack([evaluate().double() for _ in range(calls)])
    means = draws.mean(1)
    with torch.no_grad():
        forward = seconds(lambda: layer(point), 50)
    return {
        "estimator": name,
        "calls": calls,
        "mean_error": (means.mean() - exact).item(),
        "standard_error": (means.std() / calls**0.5).item(),
        "deviation": draws.std().item(),
        "evaluation_relative": seconds(evaluate) / forward,
        "training_relative": seconds(train) / forward,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("results/logdet/results.json"))
    parser.add_argument("--calls", type=int, default=100)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    layer, x = contracting_layer()
    layer.logdet = ia.Exact()
    with torch.no_grad():
        exact = layer.eval().forward_and_logdet(x[:1])[1].double().item()
    bound = layer.lipschitz_bound().item()
    rows = [measure(layer, x, name, exact, arguments.calls) for name in ESTIMATORS]
    results = {
        "schema": "invertible-attention/logdet/1",
        "layer": f"embedded_gaussian with TorusPrior, {CHANNELS} channels, {SIZE}×{SIZE} tokens, batch {BATCH}",
        "dim": x[0].numel(),
        "exact": exact,
        "lipschitz_bound": bound,
        "truncation_bound_of_5_terms": ia.PowerSeries(terms=5).truncation_bound(x[0].numel(), bound),
        "rows": rows,
        "run": run_metadata("cpu"),
    }
    for row in rows:
        print(json.dumps(row))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
