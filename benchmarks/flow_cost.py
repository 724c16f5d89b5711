"""What one and three layers of certified attention cost in flows that work without: Glow, NSF and an i-ResNet.

Glow is normflows' with three scales on images of 32×32, NSF zuko's on vectors of 64 numbers, the i-ResNet this
library's. A training step, ``log_prob`` in evaluation and sampling after a few steps of training, with and without
attention in rounds, in CPU time; the peak memory of training in a separate process, above what the imported libraries
take. Attention is Embedded Gaussian unless another response is given, with the defaults of the library.

    pip install ".[experiments,interop]"
    python benchmarks/flow_cost.py
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import normflows as nf
import torch
import zuko
from torch import Tensor, nn

from invertible_attention import InvertibleAttention
from invertible_attention.experiments.benchmark.memory import high_water_mark
from invertible_attention.experiments.files import write_json
from invertible_attention.experiments.metadata import run_metadata
from invertible_attention.flows import i_resnet
from invertible_attention.interop import to_normflows, to_zuko

LAYERS = (0, 1, 3)
WORK = ("step", "log_prob", "sample")

Model = tuple[nn.Module, Callable[[Tensor], Tensor], Callable[[int], Any], Callable[[int], Tensor]]
"""A flow, its log-density, what draws samples, and what draws data."""


def glow(layers: int, response: str, blocks: int, width: int) -> Model:
    bases, merges, flows = [], [], []
    for level, (channels, side) in enumerate(((48, 4), (24, 8), (12, 16))):  # the coarse scale first
        attention = [to_normflows(InvertibleAttention(channels, response))] if level >= 3 - layers else []
        steps = [nf.flows.GlowBlock(channels, width, split_mode="channel") for _ in range(blocks)]
        flows.append([*attention, *steps, nf.flows.Squeeze()])
        merges += [nf.flows.Merge()] if level else []
        bases.append(nf.distributions.DiagGaussian((channels if level == 0 else channels // 2, side, side)))
    model: Any = nf.MultiscaleFlow(bases, flows, merges, class_cond=False)
    return model, lambda x: model.log_prob(x, None), model.sample, lambda n: torch.rand(n, 3, 32, 32)


def nsf(layers: int, response: str, blocks: int, width: int) -> Model:
    flow: Any = zuko.flows.NSF(64, transforms=blocks, hidden_features=(width, width))
    parts = list(flow.transform.transforms)
    for place in range(layers):
        parts.insert(2 * place, to_zuko(InvertibleAttention(4, response), view=(4, 4, 4)))
    flow = zuko.lazy.Flow(parts, flow.base)
    return flow, lambda x: flow().log_prob(x), lambda n: flow().sample((n,)), lambda n: torch.randn(n, 64)


def residual(layers: int, response: str, blocks: int, width: int) -> Model:
    after = ((0, -1), (1, -1), (2, -1))[:layers]
    flow = i_resnet(
        blocks=(blocks,) * 3,
        hidden_channels=width,
        attention=(lambda channels: InvertibleAttention(channels, response)) if layers else None,
        attention_after=after or ((0, -1),),
    )
    return flow, flow.log_prob, flow.sample, lambda n: torch.randint(0, 256, (n, 3, 32, 32))


FLOWS = {
    "Glow (normflows), 3×32×32": (glow, 4, 64),
    "NSF (zuko), 64": (nsf, 3, 64),
    "i-ResNet, 3×32×32": (residual, 2, 64),
}


class Subject:
    """A flow, trained for a few steps."""

    def __init__(self, name: str, layers: int, arguments: argparse.Namespace):
        torch.manual_seed(arguments.seed)
        build, blocks, width = FLOWS[name]
        self.model, self.log_prob, self.draw, data = build(layers, arguments.response, blocks, width)
        self.batch, self.samples = data(arguments.batch), arguments.samples
        if hasattr(self.model, "initialize"):
            self.model.initialize(self.batch)  # pyright: ignore[reportCallIssue]
        self.log_prob(self.batch)  # what the first batch sets
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-4)

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.work("step")

    def work(self, what: str) -> None:
        self.model.train(what == "step")
        if what == "step":
            self.optimizer.zero_grad()
            self.log_prob(self.batch).mean().neg().backward()
            self.optimizer.step()
            return
        with torch.no_grad():
            self.log_prob(self.batch) if what == "log_prob" else self.draw(self.samples)

    def seconds(self, what: str) -> float:
        start = time.process_time()
        self.work(what)
        return time.process_time() - start


def peak(name: str, layers: int, arguments: argparse.Namespace) -> float:
    """Return how many MiB the model, the data and the first training steps take."""
    before = high_water_mark()
    Subject(name, layers, arguments).train(3)
    return (high_water_mark() - before) / 2**20


def measure(name: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for every number of layers in a flow."""
    subjects = {layers: Subject(name, layers, arguments) for layers in LAYERS}
    for subject in subjects.values():
        subject.train(arguments.warm)
    times = {layers: {what: [] for what in WORK} for layers in LAYERS}
    for round_ in range(arguments.rounds + 1):
        for what in WORK:
            for layers, subject in subjects.items():
                torch.manual_seed(arguments.seed + round_)
                times[layers][what].append(subject.seconds(what))
    rows = []
    for layers, subject in subjects.items():
        command = [sys.executable, __file__, *sys.argv[1:], "--only", name, str(layers)]
        memory = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        row = {
            "flow": name,
            "layers": layers,
            "parameters": sum(p.numel() for p in subject.model.parameters()),
        }
        row |= {what: statistics.median(found[1:]) for what, found in times[layers].items()}
        rows.append(row | {"memory": json.loads(memory)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--response", default="embedded_gaussian")
    parser.add_argument("--batch", type=int, default=32, help="of training steps and log_prob")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--warm", type=int, default=20, help="training steps before anything is measured")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("results/flows/cost.json"))
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.only:
        print(json.dumps(peak(arguments.only[0], int(arguments.only[1]), arguments)))
        return
    rows = []
    for name in FLOWS:
        found = measure(name, arguments)
        rows += found
        for row in found:
            ratios = ", ".join(f"{what} {row[what] / found[0][what]:.2f}" for what in (*WORK, "memory"))
            print(f"{name}, {row['layers']} layers: {ratios}", flush=True)
    content = {
        "schema": "invertible-attention/flow-cost/1",
        "response": arguments.response,
        "batch": arguments.batch,
        "samples": arguments.samples,
        "warm": arguments.warm,
        "rounds": arguments.rounds,
        "seed": arguments.seed,
        "rows": rows,
        "run": run_metadata(),
    }
    write_json(arguments.output, content)


if __name__ == "__main__":
    main()
