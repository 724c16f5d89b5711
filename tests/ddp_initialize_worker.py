"""One of two processes: trains flows, each loaded or initialized by some of the processes, before the training."""

from __future__ import annotations

import os
import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import invertible_attention as ia
from invertible_attention.flows import ActNorm, DiagonalGaussian, Flatten, Flow, Sequential


def make_flow() -> Flow:
    torch.manual_seed(0)
    layer = ia.InvertibleAttention(4, "embedded_gaussian", logdet=ia.Exact())
    return Flow(Sequential(ActNorm(4), layer, Flatten((4, 3))), DiagonalGaussian(12)).double()


def batch(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 5 + 3 * torch.randn(8, 4, 3, dtype=torch.float64, generator=generator)


def prepare(flow: Flow, way: str) -> None:
    """Set the flow's state in one of the ways that only the first process may use."""
    if way == "initialize":
        flow.initialize(batch(1))
    elif way == "initialize in evaluation":
        flow.eval().initialize(batch(1))
        flow.train()
    elif way == "load":
        flow.load_state_dict(prepared("initialize").state_dict())
    elif way == "assign":
        flow.load_state_dict(prepared("initialize").state_dict(), assign=True)


def prepared(way: str) -> Flow:
    flow = make_flow()
    prepare(flow, way)
    return flow


def train(flow: torch.nn.Module, batches: list[torch.Tensor], steps: int = 3) -> None:
    optimizer = torch.optim.SGD(flow.parameters(), 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.stack([-flow(part).mean() for part in batches]).mean().backward()
        optimizer.step()


def main(rank: int, store: str, output: str, *cases: str) -> None:
    """Train a flow for every ``WAY:RANKS``: a way to prepare it, and the processes that do."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    states = {}
    for case in cases:
        way, _, given = case.partition(":")
        flow = make_flow()
        if str(rank) in given:
            prepare(flow, way)
        train(DistributedDataParallel(flow), [batch(2).chunk(2)[rank]])
        states[case] = flow.state_dict()
    torch.save(states, f"{output}{rank}.pt")
    # Gloo can hang in its teardown if the other process exits first; the results are already saved.
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
