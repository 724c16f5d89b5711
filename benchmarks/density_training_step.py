"""Claim: a training step of the i-ResNet density takes at most half the memory of the authors' formulation.

The authors (and i-ResNet) estimate the log-determinant by a power series of five terms and keep its graph for
backward; weights are divided by a norm estimated with five warm-started power iterations. Ours is the unbiased
estimator with the Neumann gradient and a backward that evaluates each block again; weights are constrained by an
upper bound. Every formulation runs in a separate process, whose peak memory the system reports; the memory in
use before the first step is subtracted. The same network, batch and number of threads everywhere.

    python benchmarks/density_training_step.py --blocks 4 --channels 256 --batch 64
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils import parametrize

from invertible_attention import InvertibleAttention, PowerSeries, RussianRoulette
from invertible_attention.experiments.files import write_json
from invertible_attention.experiments.metadata import run_metadata
from invertible_attention.flows import Flow, LipschitzConvBranch, i_resnet
from invertible_attention.lipschitz.parametrize import constrain_by_estimate
from invertible_attention.logdet import LogDetEstimator

FORMULATIONS = {
    "authors: series of 5 terms, graph kept, estimated norms": (
        PowerSeries(terms=5, control_variate=False),
        True,
    ),
    "series of 5 terms, graph kept, upper bounds": (PowerSeries(terms=5, control_variate=False), False),
    "ours: unbiased, graph not kept, upper bounds": (RussianRoulette(), False),
    "ours, estimated norms": (RussianRoulette(), True),
}


def build(blocks: int, channels: int, estimator: LogDetEstimator, estimated_norms: bool) -> Flow:
    torch.manual_seed(0)
    flow = i_resnet(
        blocks=(blocks,) * 3,
        hidden_channels=channels,
        attention=lambda c: InvertibleAttention(c, "concatenation", logdet=estimator),
        logdet=estimator,
    )
    if estimated_norms:
        for branch in flow.modules():
            if isinstance(branch, LipschitzConvBranch):
                for layer in branch.layers:
                    _estimate_norm(layer, branch.coefficient)
    return flow


def _estimate_norm(layer: nn.Module, coefficient: float) -> None:
    size = layer.parametrizations.weight[0].norm.keywords["input_size"]  # pyright: ignore
    parametrize.remove_parametrizations(layer, "weight")
    constrain_by_estimate(layer, coefficient, input_size=size, n_power_iterations=5)


def measure(name: str, blocks: int, channels: int, batch: int, steps: int) -> dict[str, float]:
    flow = build(blocks, channels, *FORMULATIONS[name])
    images = torch.randint(0, 256, (batch, 3, 32, 32))
    flow.initialize(images)
    optimizer = torch.optim.Adamax(flow.parameters(), lr=1e-3)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    for _ in range(steps):
        start = time.process_time()
        optimizer.zero_grad()
        flow.bits_per_dim(images).mean().backward()
        optimizer.step()
        times.append(time.process_time() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"mib": (peak - before) / 1024, "total_mib": peak / 1024, "seconds": statistics.median(times[1:])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--blocks", type=int, default=4, help="residual blocks per scale (the paper: 16)")
    parser.add_argument("--channels", type=int, default=256, help="width of a block (the paper: 512)")
    parser.add_argument("--batch", type=int, default=64, help="images per step (the paper: 64)")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("results/density/training-step.json"))
    parser.add_argument("--only", choices=FORMULATIONS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    sizes = (arguments.blocks, arguments.channels, arguments.batch, arguments.steps)
    if arguments.only:
        print(json.dumps(measure(arguments.only, *sizes)))
        return
    reference: dict[str, float] = {}
    rows = []
    print(f"{arguments.blocks} blocks per scale, {arguments.channels} channels, batch {arguments.batch}")
    for name in FORMULATIONS:
        output = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--only", name],
            capture_output=True,
            text=True,
            check=True,
        )
        result = json.loads(output.stdout)
        reference = reference or result
        rows.append({"formulation": name} | result)
        print(
            f"{name:56} {result['mib']:7.0f} MiB ({result['mib'] / reference['mib']:.2f})  "
            f"{result['seconds']:6.2f} s per step ({result['seconds'] / reference['seconds']:.2f})",
            flush=True,
        )
    content = {
        "schema": "invertible-attention/density-training-step/1",
        "blocks": arguments.blocks,
        "channels": arguments.channels,
        "batch": arguments.batch,
        "threads": arguments.threads,
        "rows": rows,
        "run": run_metadata(),
    }
    write_json(arguments.output, content)


if __name__ == "__main__":
    main()
