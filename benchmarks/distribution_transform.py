"""Claim: a density in torch.distributions costs at most a third more per training step than the same density as a flow.

``TransformedDistribution`` asks for a latent point and its log-determinant one after the other, and nothing is
remembered in between: one more evaluation of every branch, without a log-determinant. The same layers as a list of
transforms, as one transform of a chain, and as a ``ComposeTransform``, which finds every intermediate point again with
the inverses; in CPU time, in rounds over the formulations, medians over the rounds.

    python benchmarks/distribution_transform.py
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributions import ComposeTransform, Independent, Normal, Transform, TransformedDistribution

from invertible_attention import Bijection, InvertibleAttention
from invertible_attention.experiments.files import write_json
from invertible_attention.experiments.metadata import run_metadata
from invertible_attention.flows import ActNorm, DiagonalGaussian, Flatten, Flow, Sequential
from invertible_attention.interop import to_distribution


def formulations(
    layers: int, shape: tuple[int, ...]
) -> tuple[nn.Module, dict[str, Callable[[Tensor], Tensor]]]:
    """Return the layers, and the log-density of a batch in every formulation."""
    parts: list[Bijection] = []
    for _ in range(layers):
        parts += [ActNorm(shape[0]), InvertibleAttention(shape[0])]
    flow = Flow(
        Sequential(*parts, Flatten(shape)), DiagonalGaussian(torch.Size(shape).numel(), learned=False)
    )
    base = Independent(Normal(torch.zeros(shape), torch.ones(())), len(shape))
    transforms: list[Transform] = [to_distribution(part, len(shape)) for part in parts]
    chain = to_distribution(Sequential(*parts), len(shape))
    return flow, {
        "flow of this library": flow.log_prob,
        "one transform": TransformedDistribution(base, [chain.inv]).log_prob,
        "list of transforms": TransformedDistribution(base, [t.inv for t in reversed(transforms)]).log_prob,
        "ComposeTransform": TransformedDistribution(base, [ComposeTransform(transforms).inv]).log_prob,
    }


def step(modules: nn.Module, log_prob: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Return the seconds of CPU time of a training step."""
    start = time.process_time()
    modules.zero_grad()
    log_prob(x).mean().neg().backward()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--layers", type=int, default=3, help="pairs of ActNorm and attention")
    parser.add_argument("--shape", type=int, nargs="+", default=[12, 16, 16])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("results/interop/distribution-transform.json"))
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    flow, densities = formulations(arguments.layers, tuple(arguments.shape))
    x = torch.randn(arguments.batch, *arguments.shape)
    flow.initialize(x)  # pyright: ignore[reportCallIssue]
    times: dict[str, list[float]] = {name: [] for name in densities}
    for round_ in range(arguments.rounds + 1):
        for name, log_prob in densities.items():
            torch.manual_seed(arguments.seed + round_)  # the same number of terms for all
            times[name].append(step(flow, log_prob, x))
    medians = {name: statistics.median(found[1:]) for name, found in times.items()}
    reference = medians["flow of this library"]
    cases = {name: {"seconds": found, "ratio": found / reference} for name, found in medians.items()}
    for name, case in cases.items():
        print(f"{name:24} {case['seconds']:8.4f} s per step ({case['ratio']:.2f})")
    content = {
        "schema": "invertible-attention/distribution-transform/1",
        "what": f"{arguments.layers} pairs of ActNorm and attention, {arguments.batch} samples of {arguments.shape}",
        "rounds": arguments.rounds,
        "seed": arguments.seed,
        "cases": cases,
        "run": run_metadata(),
    }
    write_json(arguments.output, content)


if __name__ == "__main__":
    main()
